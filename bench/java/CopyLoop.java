// What somebody would write who copies records exactly once in plain Java: read, send, and commit the offsets in the same
// transaction; a consumer and a producer for each thread. The benchmark `fn-kafka` runs it beside a function that does the same.
// usage: java CopyLoop.java BOOTSTRAP SOURCE TARGET GROUP THREADS RECORDS

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class CopyLoop {
    static volatile boolean ended;

    public static void main(String[] args) throws InterruptedException {
        Thread[] threads = new Thread[Integer.parseInt(args[4])];
        for (int at = 0; at < threads.length; at++) {
            String id = args[3] + "-" + at;
            threads[at] = new Thread(() -> copy(args, id));
        }
        // A signal ends the loops between two transactions, and the consumers leave their group.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            ended = true;
            for (Thread thread : threads) {
                try {
                    thread.join();
                } catch (InterruptedException e) {
                    return;
                }
            }
        }));
        for (Thread thread : threads) thread.start();
        for (Thread thread : threads) thread.join();
    }

    static void copy(String[] args, String id) {
        Properties reading = new Properties();
        reading.put("bootstrap.servers", args[0]);
        reading.put("group.id", args[3]);
        reading.put("enable.auto.commit", "false");
        reading.put("auto.offset.reset", "earliest");
        reading.put("isolation.level", "read_committed");
        reading.put("max.poll.records", args[5]);
        reading.put("max.partition.fetch.bytes", "4194304");
        Properties writing = new Properties();
        writing.put("bootstrap.servers", args[0]);
        writing.put("transactional.id", id);
        writing.put("linger.ms", "0");
        writing.put("batch.size", "262144");
        // As in Buttress; the client's own 100 ms make a transaction that meets the end of the one before wait as long.
        writing.put("retry.backoff.ms", "10");
        try (var consumer = new KafkaConsumer<>(reading, new ByteArrayDeserializer(), new ByteArrayDeserializer());
                var producer = new KafkaProducer<>(writing, new ByteArraySerializer(), new ByteArraySerializer())) {
            producer.initTransactions();
            consumer.subscribe(List.of(args[1]));
            while (!ended) {
                var records = consumer.poll(Duration.ofMillis(200));
                if (records.isEmpty()) continue;
                producer.beginTransaction();
                Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
                for (var record : records) {
                    producer.send(new ProducerRecord<>(args[2], record.key(), record.value()));
                    next.put(new TopicPartition(record.topic(), record.partition()), new OffsetAndMetadata(record.offset() + 1));
                }
                producer.sendOffsetsToTransaction(next, consumer.groupMetadata());
                producer.commitTransaction();
            }
        }
    }
}
