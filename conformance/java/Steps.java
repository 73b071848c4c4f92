// The steps of an ordinary user of Kafka's own Java client.

import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.RangeAssignor;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.AppInfoParser;

public final class Steps {
    private static final String SERVERS = System.getenv("KAFKA_BOOTSTRAP");
    private static final String T = "conformance-java-" + System.nanoTime() + ProcessHandle.current().pid();
    private static int count;
    private static Admin admin;

    // How a step is told: one JSON object per line, as lib.sh describes it.

    private static String json(Object value) {
        StringBuilder text = new StringBuilder("\"");
        for (char c : String.valueOf(value).toCharArray()) {
            if (c == '"' || c == '\\') {
                text.append('\\').append(c);
            } else if (c < ' ') {
                text.append(String.format("\\u%04x", (int) c));
            } else {
                text.append(c);
            }
        }
        return text.append('"').toString();
    }

    private static void step(String name, Object wanted, Callable<Object> action) {
        Object got;
        try {
            got = action.call();
        } catch (Throwable error) { // whatever a client throws is a finding
            Throwable cause = error instanceof ExecutionException && error.getCause() != null ? error.getCause() : error;
            error.printStackTrace();
            got = cause.getClass().getSimpleName() + ": " + cause.getMessage();
        }
        count++;
        if (String.valueOf(wanted).equals(String.valueOf(got))) {
            System.out.println("{\"check\":" + json(name) + ",\"ok\":true}");
        } else {
            System.out.println("{\"check\":" + json(name) + ",\"ok\":false,\"wanted\":" + json(wanted) + ",\"got\":" + json(got) + "}");
        }
    }

    /** The simple name of what an action throws. */
    private static String thrown(Callable<Object> action) {
        try {
            return "no error, but " + action.call();
        } catch (ExecutionException error) {
            return error.getCause().getClass().getSimpleName();
        } catch (Exception error) {
            return error.getClass().getSimpleName();
        }
    }

    private static boolean eventually(int seconds, Callable<Boolean> condition) throws Exception {
        for (long end = System.nanoTime() + seconds * 1_000_000_000L; ; Thread.sleep(50)) {
            if (condition.call()) {
                return true;
            }
            if (System.nanoTime() > end) {
                return false;
            }
        }
    }

    private static Map<String, Object> config(Object... more) {
        Map<String, Object> config = new HashMap<>(Map.of("bootstrap.servers", SERVERS));
        for (int n = 0; n < more.length; n += 2) {
            config.put((String) more[n], more[n + 1]);
        }
        return config;
    }

    private static KafkaProducer<String, String> producer(Object... more) {
        return new KafkaProducer<>(config(more), new StringSerializer(), new StringSerializer());
    }

    private static KafkaConsumer<String, String> consumer(Object... more) {
        Map<String, Object> config = config("auto.offset.reset", "earliest", "enable.auto.commit", "false", "session.timeout.ms", "6000", "heartbeat.interval.ms", "500");
        config.putAll(config(more));
        config.values().removeIf(value -> value.equals("")); // an empty text takes a setting away
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    private static List<Long> produce(String topic, List<String> values, Object... more) throws Exception {
        try (KafkaProducer<String, String> producer = producer(more)) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (String value : values) {
                sent.add(producer.send(new ProducerRecord<>(topic, 0, null, value)));
            }
            List<Long> offsets = new ArrayList<>();
            for (Future<RecordMetadata> one : sent) {
                offsets.add(one.get(20, TimeUnit.SECONDS).offset());
            }
            return offsets;
        }
    }

    private static List<ConsumerRecord<String, String>> poll(KafkaConsumer<String, String> consumer, int wanted, int seconds) {
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        for (long end = System.nanoTime() + seconds * 1_000_000_000L; got.size() < wanted && System.nanoTime() < end; ) {
            consumer.poll(Duration.ofMillis(200)).forEach(got::add);
        }
        return got;
    }

    private static List<ConsumerRecord<String, String>> read(String topic, int partition, int wanted, long offset, Object... more) {
        try (KafkaConsumer<String, String> consumer = consumer(more)) {
            TopicPartition at = new TopicPartition(topic, partition);
            consumer.assign(List.of(at));
            consumer.seek(at, offset);
            return poll(consumer, wanted, 15);
        }
    }

    private static List<String> values(List<ConsumerRecord<String, String>> records, int limit) {
        return records.stream().limit(limit).map(ConsumerRecord::value).collect(Collectors.toList());
    }

    private static List<String> lines(String name, int lines) {
        return IntStream.range(0, lines).mapToObj(n -> name + " line " + n + " of some length to compress").collect(Collectors.toList());
    }

    private static ConfigEntry entry(String key) throws Exception {
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, T);
        Config told = admin.describeConfigs(List.of(resource)).all().get().get(resource);
        return told.get(key);
    }

    private static void topics() {
        step("the cluster is described", true, () -> !admin.describeCluster().nodes().get().isEmpty() && admin.describeCluster().clusterId().get() != null
            && admin.describeCluster().controller().get() != null);
        step("a topic is created", 3, () -> admin.createTopics(List.of(new NewTopic(T, 3, (short) 1).configs(Map.of("retention.ms", "3600000")))).numPartitions(T).get());
        step("a topic with the server's defaults", true, () -> admin.createTopics(List.of(new NewTopic(T + "-default", Optional.empty(), Optional.empty())))
            .numPartitions(T + "-default").get() > 0);
        step("a topic that is there", "TopicExistsException", () -> thrown(() -> admin.createTopics(List.of(new NewTopic(T, 3, (short) 1))).all().get()));
        step("a name that cannot be", "InvalidTopicException", () -> thrown(() -> admin.createTopics(List.of(new NewTopic("no/good", 1, (short) 1))).all().get()));
        step("no partitions", "InvalidPartitionsException", () -> thrown(() -> admin.createTopics(List.of(new NewTopic(T + "-0", 0, (short) 1))).all().get()));
        step("more replicas than brokers", "InvalidReplicationFactorException", () -> thrown(() -> admin.createTopics(List.of(new NewTopic(T + "-r", 1, (short) 99))).all().get()));
        step("the topic is listed", true, () -> admin.listTopics().names().get().contains(T));
        step("the topic is described", "3 true true", () -> {
            TopicDescription told = admin.describeTopics(List.of(T)).allTopicNames().get().get(T);
            boolean whole = told.partitions().stream().allMatch(p -> p.leader() != null && !p.replicas().isEmpty() && !p.isr().isEmpty());
            return told.partitions().size() + " " + whole + " " + admin.listTopics().namesToListings().get().get(T).topicId().equals(told.topicId());
        });
        step("a configuration that was given", "3600000 DYNAMIC_TOPIC_CONFIG", () -> entry("retention.ms").value() + " " + entry("retention.ms").source());
        step("a default", "delete DEFAULT_CONFIG", () -> entry("cleanup.policy").value() + " " + entry("cleanup.policy").source());
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, T);
        step("a configuration is changed", true, () -> {
            admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("retention.ms", "7200000"), AlterConfigOp.OpType.SET)))).all().get();
            return eventually(10, () -> entry("retention.ms").value().equals("7200000"));
        });
        step("a configuration that there is not", "InvalidConfigurationException", () -> thrown(() -> admin.incrementalAlterConfigs(
            Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry("no.such", "1"), AlterConfigOp.OpType.SET)))).all().get()));
        step("partitions are added", true, () -> {
            admin.createPartitions(Map.of(T, NewPartitions.increaseTo(5))).all().get();
            return eventually(10, () -> admin.describeTopics(List.of(T)).allTopicNames().get().get(T).partitions().size() == 5);
        });
        step("partitions are never taken away", "InvalidPartitionsException", () -> thrown(() -> admin.createPartitions(Map.of(T, NewPartitions.increaseTo(2))).all().get()));
    }

    private static void records() {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            List<String> lines = lines(codec, 500);
            step("reads back what was written with " + codec, lines, () -> {
                produce(T + "-" + codec, lines, "compression.type", codec, "linger.ms", "20");
                return values(read(T + "-" + codec, 0, 500, 0), 500);
            });
        }
        step("an idempotent producer counts offsets without a gap", IntStream.range(0, 1000).boxed().collect(Collectors.toList()),
            () -> produce(T + "-idem", lines("idem", 1000), "enable.idempotence", "true"));
        step("a producer that is not idempotent", List.of(0L), () -> produce(T + "-plain", List.of("x"), "enable.idempotence", "false", "acks", "1"));
        step("key, headers, timestamp and a tombstone", "k v a=1,a=2 1700000000123 CreateTime null", () -> {
            try (KafkaProducer<String, String> producer = producer()) {
                ProducerRecord<String, String> record = new ProducerRecord<>(T, 1, 1_700_000_000_123L, "k", "v");
                record.headers().add("a", "1".getBytes()).add("a", "2".getBytes());
                producer.send(record).get();
                producer.send(new ProducerRecord<>(T, 1, "k", null)).get();
            }
            List<ConsumerRecord<String, String>> got = read(T, 1, 2, 0);
            List<String> headers = new ArrayList<>();
            got.get(0).headers().forEach(h -> headers.add(h.key() + "=" + new String(h.value())));
            return got.get(0).key() + " " + got.get(0).value() + " " + String.join(",", headers) + " " + got.get(0).timestamp() + " " + got.get(0).timestampType()
                + " " + got.get(1).value();
        });
        step("from an offset on", List.of(998L, 999L), () -> read(T + "-idem", 0, 2, 998).stream().map(ConsumerRecord::offset).collect(Collectors.toList()));
        TopicPartition idem = new TopicPartition(T + "-idem", 0);
        step("the first and the next offset, and how far behind a reader is", "0 1000 0 1000", () -> {
            try (KafkaConsumer<String, String> consumer = consumer()) {
                consumer.assign(List.of(idem));
                consumer.seekToEnd(List.of(idem));
                return consumer.beginningOffsets(List.of(idem)).get(idem) + " " + consumer.endOffsets(List.of(idem)).get(idem) + " "
                    + (1000 - consumer.position(idem)) + " " + consumer.position(idem);
            }
        });
        TopicPartition time = new TopicPartition(T + "-time", 0);
        step("offsets by time, and of the largest time", "3 1700000003000 null 4", () -> {
            try (KafkaProducer<String, String> producer = producer()) {
                for (int n = 0; n < 5; n++) {
                    producer.send(new ProducerRecord<>(time.topic(), 0, 1_700_000_000_000L + n * 1000, null, "" + n)).get();
                }
            }
            try (KafkaConsumer<String, String> consumer = consumer()) {
                var found = consumer.offsetsForTimes(Map.of(time, 1_700_000_002_500L)).get(time);
                var none = consumer.offsetsForTimes(Map.of(time, 18_000_000_000_000L)).get(time);
                long largest = admin.listOffsets(Map.of(time, OffsetSpec.maxTimestamp())).partitionResult(time).get().offset();
                return found.offset() + " " + found.timestamp() + " " + none + " " + largest;
            }
        });
        step("records are deleted up to an offset", 2L, () -> {
            admin.deleteRecords(Map.of(time, RecordsToDelete.beforeOffset(2))).all().get();
            return admin.listOffsets(Map.of(time, OffsetSpec.earliest())).partitionResult(time).get().offset();
        });
    }

    /** A member of a group, polled by a thread of its own. */
    private static final class Member implements AutoCloseable {
        private final Set<Integer> has = new HashSet<>();
        private final Thread thread;
        private volatile boolean ends;
        private volatile Exception failed;

        Member(String group, Object... more) {
            Object[] config = Arrays.copyOf(more, more.length + 2);
            config[more.length] = "group.id";
            config[more.length + 1] = group;
            KafkaConsumer<String, String> consumer = consumer(config);
            consumer.subscribe(List.of(T), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> parts) {
                    synchronized (has) {
                        parts.forEach(p -> has.remove(p.partition()));
                    }
                }

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> parts) {
                    synchronized (has) {
                        parts.forEach(p -> has.add(p.partition()));
                    }
                }
            });
            thread = new Thread(() -> {
                try (consumer) {
                    while (!ends) {
                        consumer.poll(Duration.ofMillis(100));
                    }
                } catch (Exception error) {
                    failed = error;
                }
            });
            thread.start();
        }

        /** The partitions that it has; throws what its thread met. */
        Set<Integer> parts() throws Exception {
            if (failed != null) {
                throw failed;
            }
            synchronized (has) {
                return new HashSet<>(has);
            }
        }

        @Override
        public void close() throws InterruptedException {
            ends = true;
            thread.join();
        }
    }

    private static boolean shared(Member one, Member two) throws Exception {
        return !one.parts().isEmpty() && !two.parts().isEmpty() && one.parts().size() + two.parts().size() == 5;
    }

    private static void groups() {
        for (Class<?> assignor : List.of(RangeAssignor.class, CooperativeStickyAssignor.class)) {
            String name = assignor.getSimpleName();
            step("two members share the partitions with the " + name + "; when one leaves the other has all", "5 true 5", () -> {
                try (Member one = new Member(T + name, "partition.assignment.strategy", assignor.getName())) {
                    Member two = new Member(T + name, "partition.assignment.strategy", assignor.getName());
                    eventually(20, () -> shared(one, two));
                    String seen = one.parts().size() + two.parts().size() + " " + shared(one, two);
                    two.close();
                    eventually(20, () -> one.parts().size() == 5);
                    return seen + " " + one.parts().size();
                }
            });
        }
        step("a static member that comes back has what it had", true, () -> {
            try (Member one = new Member(T + "-static", "group.instance.id", "i0")) {
                Member two = new Member(T + "-static", "group.instance.id", "i1");
                eventually(20, () -> shared(one, two));
                Set<Integer> had = two.parts();
                Set<Integer> kept = one.parts();
                two.close();
                try (Member again = new Member(T + "-static", "group.instance.id", "i1")) {
                    eventually(20, () -> !again.parts().isEmpty());
                    return !had.isEmpty() && again.parts().equals(had) && one.parts().equals(kept);
                }
            }
        });
        TopicPartition idem = new TopicPartition(T + "-idem", 0);
        String group = T + "-commit";
        step("commits, and resumes where it was", "0 10 note 10", () -> {
            try (KafkaConsumer<String, String> one = consumer("group.id", group)) {
                one.subscribe(List.of(idem.topic()));
                long first = poll(one, 10, 15).get(0).offset();
                one.commitSync(Map.of(idem, new OffsetAndMetadata(10, "note")));
                OffsetAndMetadata told = one.committed(Set.of(idem)).get(idem);
                one.close();
                try (KafkaConsumer<String, String> two = consumer("group.id", group)) {
                    two.subscribe(List.of(idem.topic()));
                    return first + " " + told.offset() + " " + told.metadata() + " " + poll(two, 1, 15).get(0).offset();
                }
            }
        });
        step("groups are listed and described, with their offsets", "true Empty 10", () -> {
            boolean listed = admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group));
            ConsumerGroupDescription told = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            return listed + " " + told.groupState() + " " + admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(idem).offset();
        });
        step("a living group is described with its members", "Stable range 1 5", () -> {
            try (Member one = new Member(T + "-living", "partition.assignment.strategy", RangeAssignor.class.getName())) {
                eventually(20, () -> one.parts().size() == 5);
                ConsumerGroupDescription told = admin.describeConsumerGroups(List.of(T + "-living")).all().get().get(T + "-living");
                return told.groupState() + " " + told.partitionAssignor() + " " + told.members().size() + " " + told.members().iterator().next().assignment().topicPartitions().size();
            }
        });
        step("a group's offsets are set from outside", 500L, () -> {
            admin.alterConsumerGroupOffsets(group, Map.of(idem, new OffsetAndMetadata(500))).all().get();
            return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(idem).offset();
        });
        step("a group is deleted", false, () -> {
            admin.deleteConsumerGroups(List.of(group)).all().get();
            return admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals(group));
        });
        step("a group that there is not", "GroupIdNotFoundException", () -> thrown(() -> admin.deleteConsumerGroups(List.of(T + "-none")).all().get()));
        step("the consumer protocol of KIP-848", "5 true 5", () -> {
            Object[] config = {"group.protocol", "consumer", "session.timeout.ms", "", "heartbeat.interval.ms", ""};
            try (Member one = new Member(T + "-848", config); Member two = new Member(T + "-848", config)) {
                boolean all = eventually(25, () -> shared(one, two));
                String seen = one.parts().size() + two.parts().size() + " " + all;
                two.close();
                eventually(20, () -> one.parts().size() == 5);
                return seen + " " + one.parts().size();
            }
        });
    }

    private static void refusals() {
        step("a message that is too large", "RecordTooLargeException", () -> thrown(() -> produce(T, List.of("x".repeat(2_000_000)), "max.request.size", "5000000")));
        step("a topic that there is not", "UnknownTopicOrPartitionException", () -> thrown(() -> admin.deleteTopics(List.of(T + "-missing")).all().get()));
        step("an offset that is out of range starts where the policy says", List.of(0L),
            () -> read(T + "-idem", 0, 1, 50_000).stream().limit(1).map(ConsumerRecord::offset).collect(Collectors.toList()));
        step("transactions commit and abort", "[a, b, c]", () -> {
            try (KafkaProducer<String, String> producer = producer("transactional.id", T, "max.block.ms", "15000")) {
                producer.initTransactions();
                for (String texts : List.of("a b", "!never", "c")) {
                    producer.beginTransaction();
                    for (String text : texts.replace("!", "").split(" ")) {
                        producer.send(new ProducerRecord<>(T + "-tx", 0, null, text));
                    }
                    if (texts.startsWith("!")) {
                        producer.abortTransaction();
                    } else {
                        producer.commitTransaction();
                    }
                }
            }
            return values(read(T + "-tx", 0, 3, 0, "isolation.level", "read_committed"), 3);
        });
        step("a topic is deleted", true, () -> {
            admin.deleteTopics(List.of(T)).all().get();
            return eventually(10, () -> !admin.listTopics().names().get().contains(T));
        });
    }

    public static void main(String[] args) {
        System.out.println("{\"client\":\"java\",\"version\":" + json(AppInfoParser.getVersion()) + "}");
        admin = Admin.create(config("default.api.timeout.ms", "20000", "request.timeout.ms", "10000"));
        topics();
        records();
        groups();
        refusals();
        System.out.println("{\"end\":" + count + "}");
        System.exit(0);
    }
}
