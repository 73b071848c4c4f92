// The steps of an ordinary user of franz-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	. "buttress/conformance/checks"
)

var (
	ctx   = context.Background()
	seeds = strings.Split(os.Getenv("KAFKA_BOOTSTRAP"), ",")
	t     = fmt.Sprintf("conformance-franz-%d", time.Now().UnixNano())
	admin *kadm.Client
)

func client(options ...kgo.Opt) *kgo.Client {
	made, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.AllowAutoTopicCreation(), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequestRetries(5)}, options...)...)
	if err != nil {
		panic(err)
	}
	return made
}

func within(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, limit)
}

// produce returns the offsets of the records.
func produce(records []*kgo.Record, options ...kgo.Opt) ([]int64, error) {
	cl := client(options...)
	defer cl.Close()
	limited, cancel := within(20 * time.Second)
	defer cancel()
	results := cl.ProduceSync(limited, records...)
	offsets := make([]int64, 0, len(results))
	for _, result := range results {
		if result.Err != nil {
			return nil, result.Err
		}
	}
	for _, record := range records {
		offsets = append(offsets, record.Offset)
	}
	return offsets, nil
}

func texts(topic string, values ...string) []*kgo.Record {
	var records []*kgo.Record
	for _, value := range values {
		records = append(records, &kgo.Record{Topic: topic, Value: []byte(value)})
	}
	return records
}

func lines(name string, count int) []string {
	made := make([]string, count)
	for n := range made {
		made[n] = fmt.Sprintf("%s line %d of some length to compress", name, n)
	}
	return made
}

func poll(cl *kgo.Client, count int, limit time.Duration) ([]*kgo.Record, error) {
	limited, cancel := within(limit)
	defer cancel()
	var got []*kgo.Record
	for len(got) < count {
		fetches := cl.PollFetches(limited)
		if err := limited.Err(); err != nil {
			return got, err
		}
		if errs := fetches.Errors(); len(errs) > 0 {
			return got, errs[0].Err
		}
		got = append(got, fetches.Records()...)
	}
	return got, nil
}

func values(records []*kgo.Record, count int) []string {
	var got []string
	for _, record := range records[:min(count, len(records))] {
		got = append(got, string(record.Value))
	}
	return got
}

func read(topic string, count int, partition int32, at kgo.Offset, options ...kgo.Opt) ([]*kgo.Record, error) {
	cl := client(append(options, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: at}}))...)
	defer cl.Close()
	return poll(cl, count, 15*time.Second)
}

func equal(got, wanted []string) string {
	if len(got) != len(wanted) {
		return fmt.Sprintf("%d of %d", len(got), len(wanted))
	}
	for n := range got {
		if got[n] != wanted[n] {
			return fmt.Sprintf("%q at %d", got[n], n)
		}
	}
	return "equal"
}

func topics() {
	Step("the cluster is described", true, func() (bool, error) {
		told, err := admin.BrokerMetadata(ctx)
		return err == nil && told.Cluster != "" && len(told.Brokers) > 0 && told.Controller >= 0, err
	})
	Step("the versions of the interfaces are told", true, func() (bool, error) {
		told, err := admin.ApiVersions(ctx)
		if err != nil {
			return false, err
		}
		for _, broker := range told {
			keys := 0
			broker.EachKeySorted(func(int16, int16, int16) { keys++ })
			if broker.Err != nil || keys < 10 {
				return false, broker.Err
			}
		}
		return true, nil
	})
	hour := "3600000"
	Step("a topic is created", true, func() (bool, error) {
		done, err := admin.CreateTopic(ctx, 3, 1, map[string]*string{"retention.ms": &hour}, t)
		return err == nil && done.ID != kadm.TopicID{} && done.NumPartitions == 3, err
	})
	for _, wrong := range []struct {
		name       string
		partitions int32
		replicas   int16
		topic      string
		configs    map[string]*string
		wanted     error
	}{
		{"a topic that is there", 3, 1, t, nil, kerr.TopicAlreadyExists},
		{"a name that cannot be", 1, 1, "no/good", nil, kerr.InvalidTopicException},
		{"no partitions", 0, 1, t + "-0", nil, kerr.InvalidPartitions},
		{"more replicas than brokers", 1, 99, t + "-r", nil, kerr.InvalidReplicationFactor},
		{"a configuration that there is not", 1, 1, t + "-c", map[string]*string{"no.such": &hour}, kerr.InvalidConfig},
	} {
		Step(wrong.name, true, func() (bool, error) {
			_, err := admin.CreateTopic(ctx, wrong.partitions, wrong.replicas, wrong.configs, wrong.topic)
			if errors.Is(err, wrong.wanted) {
				return true, nil
			}
			return false, err
		})
	}
	Step("the topic is listed and described", "3 true", func() (string, error) {
		told, err := admin.ListTopics(ctx)
		one := told[t]
		whole := true
		for _, p := range one.Partitions {
			whole = whole && p.Leader >= 0 && len(p.Replicas) > 0 && len(p.ISR) == len(p.Replicas)
		}
		return fmt.Sprint(len(one.Partitions), " ", whole), err
	})
	config := func(key string) (string, error) {
		told, err := admin.DescribeTopicConfigs(ctx, t)
		if err != nil {
			return "", err
		}
		for _, one := range told[0].Configs {
			if one.Key == key {
				return fmt.Sprint(one.MaybeValue(), " ", one.Source), told[0].Err
			}
		}
		return "none", told[0].Err
	}
	Step("a configuration that was given", "3600000 DYNAMIC_TOPIC_CONFIG", func() (string, error) { return config("retention.ms") })
	Step("a default", "1048588 DEFAULT_CONFIG", func() (string, error) { return config("max.message.bytes") })
	Step("a configuration is changed", "7200000 DYNAMIC_TOPIC_CONFIG", func() (string, error) {
		two := "7200000"
		done, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &two}}, t)
		if err != nil {
			return "", err
		}
		Eventually(10*time.Second, func() bool { told, _ := config("retention.ms"); return strings.HasPrefix(told, two) })
		told, err := config("retention.ms")
		return told, errors.Join(done[0].Err, err)
	})
	Step("partitions are added", 5, func() (int, error) {
		done, err := admin.UpdatePartitions(ctx, 5, t)
		if err == nil {
			err = done[t].Err
		}
		count := func() int { told, _ := admin.ListTopics(ctx, t); return len(told[t].Partitions) }
		Eventually(10*time.Second, func() bool { return count() == 5 })
		return count(), err
	})
}

func records() {
	for _, codec := range []struct {
		name  string
		codec kgo.CompressionCodec
	}{{"none", kgo.NoCompression()}, {"gzip", kgo.GzipCompression()}, {"snappy", kgo.SnappyCompression()}, {"lz4", kgo.Lz4Compression()}, {"zstd", kgo.ZstdCompression()}} {
		Step("reads back what was written with "+codec.name, "equal", func() (string, error) {
			topic, wanted := t+"-"+codec.name, lines(codec.name, 500)
			if _, err := produce(texts(topic, wanted...), kgo.ProducerBatchCompression(codec.codec)); err != nil {
				return "", err
			}
			got, err := read(topic, 500, 0, kgo.NewOffset().AtStart())
			return equal(values(got, 500), wanted), err
		})
	}
	Step("an idempotent producer counts offsets without a gap", true, func() (bool, error) {
		offsets, err := produce(texts(t+"-idem", lines("idem", 1000)...))
		for n, offset := range offsets {
			if offset != int64(n) {
				return false, fmt.Errorf("offset %d of record %d", offset, n)
			}
		}
		return len(offsets) == 1000, err
	})
	Step("a producer that is not idempotent, acknowledged by one and by nobody", "0 1", func() (string, error) {
		first, err := produce(texts(t+"-acks", "a"), kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()))
		if err != nil {
			return "", err
		}
		if _, err = produce(texts(t+"-acks", "b"), kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.NoAck())); err != nil {
			return "", err
		}
		got, err := read(t+"-acks", 2, 0, kgo.NewOffset().AtStart())
		if err != nil {
			return "", err
		}
		return fmt.Sprint(first[0], " ", got[1].Offset), nil
	})
	Step("key, headers, timestamp and a tombstone", "k v a=1,a=2 1700000000123 true", func() (string, error) {
		_, err := produce([]*kgo.Record{
			{Topic: t, Partition: 1, Key: []byte("k"), Value: []byte("v"), Timestamp: time.UnixMilli(1_700_000_000_123),
				Headers: []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}}},
			{Topic: t, Partition: 1, Key: []byte("k")},
		})
		if err != nil {
			return "", err
		}
		got, err := read(t, 2, 1, kgo.NewOffset().AtStart())
		if err != nil {
			return "", err
		}
		var headers []string
		for _, h := range got[0].Headers {
			headers = append(headers, h.Key+"="+string(h.Value))
		}
		return fmt.Sprint(string(got[0].Key), " ", string(got[0].Value), " ", strings.Join(headers, ","), " ", got[0].Timestamp.UnixMilli(), " ", got[1].Value == nil), nil
	})
	Step("from an offset on", []string{"idem line 998 of some length to compress", "idem line 999 of some length to compress"}, func() ([]string, error) {
		got, err := read(t+"-idem", 2, 0, kgo.NewOffset().At(998))
		return values(got, 2), err
	})
	Step("from the end backwards", "997", func() (string, error) {
		got, err := read(t+"-idem", 3, 0, kgo.NewOffset().AtEnd().Relative(-3))
		if err != nil {
			return "", err
		}
		return fmt.Sprint(got[0].Offset), nil
	})
	Step("the first and the next offset", "0 1000", func() (string, error) {
		first, err := admin.ListStartOffsets(ctx, t+"-idem")
		if err != nil {
			return "", err
		}
		next, err := admin.ListEndOffsets(ctx, t+"-idem")
		return fmt.Sprint(first[t+"-idem"][0].Offset, " ", next[t+"-idem"][0].Offset), err
	})
	Step("offsets by time, and of the largest time", "3 1700000003000 4", func() (string, error) {
		for n := range 5 {
			record := texts(t+"-time", fmt.Sprint(n))
			record[0].Timestamp = time.UnixMilli(1_700_000_000_000 + int64(n)*1000)
			if _, err := produce(record); err != nil {
				return "", err
			}
		}
		found, err := admin.ListOffsetsAfterMilli(ctx, 1_700_000_002_500, t+"-time")
		if err != nil {
			return "", err
		}
		largest, err := admin.ListMaxTimestampOffsets(ctx, t+"-time")
		return fmt.Sprint(found[t+"-time"][0].Offset, " ", found[t+"-time"][0].Timestamp, " ", largest[t+"-time"][0].Offset), err
	})
	Step("reading from a time on", "3", func() (string, error) {
		got, err := read(t+"-time", 2, 0, kgo.NewOffset().AfterMilli(1_700_000_002_500))
		return strings.Join(values(got, 1), ""), err
	})
	Step("records are deleted up to an offset", int64(2), func() (int64, error) {
		offsets := kadm.Offsets{}
		offsets.AddOffset(t+"-time", 0, 2, -1)
		done, err := admin.DeleteRecords(ctx, offsets)
		if err != nil {
			return 0, err
		}
		return done[t+"-time"][0].LowWatermark, done[t+"-time"][0].Err
	})
	Step("a reader that waits is woken", "live", func() (string, error) {
		time.AfterFunc(500*time.Millisecond, func() { produce(texts(t+"-idem", "live")) })
		got, err := read(t+"-idem", 1, 0, kgo.NewOffset().At(1000), kgo.FetchMaxWait(10*time.Second))
		return strings.Join(values(got, 1), ""), err
	})
}

// member is one of a group; a goroutine polls it and the callbacks keep what it has.
type member struct {
	*kgo.Client
	lock  sync.Mutex
	has   map[int32]bool
	count int
}

func join(group string, options ...kgo.Opt) *member {
	m := &member{has: map[int32]bool{}}
	changed := func(add bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
			m.lock.Lock()
			defer m.lock.Unlock()
			for _, p := range parts[t] {
				if add {
					m.has[p] = true
				} else {
					delete(m.has, p)
				}
			}
		}
	}
	m.Client = client(append([]kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(t), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(6 * time.Second), kgo.HeartbeatInterval(500 * time.Millisecond), kgo.RebalanceTimeout(10 * time.Second),
		kgo.OnPartitionsAssigned(changed(true)), kgo.OnPartitionsRevoked(changed(false)), kgo.OnPartitionsLost(changed(false))}, options...)...)
	go func() {
		for {
			fetches := m.PollFetches(ctx)
			if fetches.IsClientClosed() {
				return
			}
			m.lock.Lock()
			m.count += fetches.NumRecords()
			m.lock.Unlock()
		}
	}()
	return m
}

func (m *member) parts() []int {
	m.lock.Lock()
	defer m.lock.Unlock()
	var parts []int
	for p := range m.has {
		parts = append(parts, int(p))
	}
	sort.Ints(parts)
	return parts
}

func shared(one, two *member) bool {
	a, b := len(one.parts()), len(two.parts())
	return a > 0 && b > 0 && a+b == 5
}

func groups() {
	for _, balance := range []struct {
		name     string
		balancer kgo.GroupBalancer
	}{{"cooperative assignor", kgo.CooperativeStickyBalancer()}, {"range assignor", kgo.RangeBalancer()}, {"sticky assignor", kgo.StickyBalancer()}} {
		Step("two members share the partitions with the "+balance.name+"; when one leaves the other has all", "[2 3] 5", func() (string, error) {
			group := t + "-" + strings.Fields(balance.name)[0]
			one := join(group, kgo.Balancers(balance.balancer))
			defer one.Close()
			two := join(group, kgo.Balancers(balance.balancer))
			Eventually(20*time.Second, func() bool { return shared(one, two) })
			sizes := []int{len(one.parts()), len(two.parts())}
			sort.Ints(sizes)
			two.Close()
			Eventually(20*time.Second, func() bool { return len(one.parts()) == 5 })
			return fmt.Sprint(sizes, " ", len(one.parts())), nil
		})
	}
	Step("a static member that comes back has what it had", true, func() (bool, error) {
		options := []kgo.Opt{kgo.Balancers(kgo.RangeBalancer())}
		one := join(t+"-static", append(options, kgo.InstanceID("i0"))...)
		defer one.Close()
		two := join(t+"-static", append(options, kgo.InstanceID("i1"))...)
		Eventually(20*time.Second, func() bool { return shared(one, two) })
		had, kept := two.parts(), one.parts()
		two.Close()
		again := join(t+"-static", append(options, kgo.InstanceID("i1"))...)
		defer again.Close()
		Eventually(20*time.Second, func() bool { return len(again.parts()) > 0 })
		return len(had) > 0 && fmt.Sprint(had, kept) == fmt.Sprint(again.parts(), one.parts()), nil
	})
	group, topic := t+"-commit", t+"-idem"
	Step("commits, and resumes where it was", "0 10", func() (string, error) {
		plain := func() *kgo.Client {
			return client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		}
		one := plain()
		first, err := poll(one, 10, 15*time.Second)
		if err != nil {
			return "", err
		}
		err = one.CommitRecords(ctx, first[9])
		one.Close()
		if err != nil {
			return "", err
		}
		two := plain()
		defer two.Close()
		then, err := poll(two, 1, 15*time.Second)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(first[0].Offset, " ", then[0].Offset), nil
	})
	Step("groups are listed and described, with their lag", "true Empty 991", func() (string, error) {
		listed, err := admin.ListGroups(ctx)
		if err != nil {
			return "", err
		}
		_, found := listed[group]
		lag, err := admin.Lag(ctx, group)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(found, " ", lag[group].State, " ", lag[group].Lag.Total()), errors.Join(lag[group].DescribeErr, lag[group].FetchErr)
	})
	Step("offsets are set from outside, with a note", "500 note", func() (string, error) {
		offsets := kadm.Offsets{}
		offsets.Add(kadm.Offset{Topic: topic, Partition: 0, At: 500, LeaderEpoch: -1, Metadata: "note"})
		if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
			return "", err
		}
		told, err := admin.FetchOffsets(ctx, group)
		one, _ := told.Lookup(topic, 0)
		return fmt.Sprint(one.At, " ", one.Metadata), err
	})
	Step("a living group is described with its members", "Stable range 1 5", func() (string, error) {
		one := join(t+"-living", kgo.Balancers(kgo.RangeBalancer()))
		defer one.Close()
		Eventually(20*time.Second, func() bool { return len(one.parts()) == 5 })
		told, err := admin.DescribeGroups(ctx, t+"-living")
		if err != nil {
			return "", err
		}
		living := told[t+"-living"]
		return fmt.Sprint(living.State, " ", living.Protocol, " ", len(living.Members), " ", len(living.AssignedPartitions()[t])), living.Err
	})
	Step("a group with members is not deleted", true, func() (bool, error) {
		one := join(t + "-busy")
		defer one.Close()
		Eventually(20*time.Second, func() bool { return len(one.parts()) == 5 })
		_, err := admin.DeleteGroup(ctx, t+"-busy")
		if errors.Is(err, kerr.NonEmptyGroup) {
			return true, nil
		}
		return false, err
	})
	Step("offsets of a group are deleted", 0, func() (int, error) {
		set := kadm.TopicsSet{}
		set.Add(topic, 0)
		done, err := admin.DeleteOffsets(ctx, group, set)
		if err != nil {
			return 0, err
		}
		told, err := admin.FetchOffsets(ctx, group)
		return len(told), errors.Join(done.Error(), err)
	})
	Step("a group is deleted", true, func() (bool, error) {
		_, err := admin.DeleteGroup(ctx, t+"-living")
		return err == nil, err
	})
	Step("a group that there is not", true, func() (bool, error) {
		_, err := admin.DeleteGroup(ctx, t+"-none")
		if errors.Is(err, kerr.GroupIDNotFound) {
			return true, nil
		}
		return false, err
	})
}

func refusals() {
	Step("a message that is too large", true, func() (bool, error) {
		_, err := produce(texts(t, strings.Repeat("x", 2_000_000)), kgo.ProducerBatchMaxBytes(5_000_000), kgo.ProducerBatchCompression(kgo.NoCompression()))
		if errors.Is(err, kerr.MessageTooLarge) {
			return true, nil
		}
		return false, err
	})
	Step("a topic that there is not", true, func() (bool, error) {
		_, err := admin.DeleteTopic(ctx, t+"-missing")
		if errors.Is(err, kerr.UnknownTopicOrPartition) {
			return true, nil
		}
		return false, err
	})
	Step("an offset that is out of range starts where the policy says", int64(0), func() (int64, error) {
		got, err := read(t+"-idem", 1, 0, kgo.NewOffset().At(50_000), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err != nil {
			return 0, err
		}
		return got[0].Offset, nil
	})
	Step("transactions commit and abort", "a b c", func() (string, error) {
		limited, cancel := within(20 * time.Second)
		defer cancel()
		cl := client(kgo.TransactionalID(t))
		defer cl.Close()
		for _, one := range []struct {
			texts  []string
			commit kgo.TransactionEndTry
		}{{[]string{"a", "b"}, kgo.TryCommit}, {[]string{"never"}, kgo.TryAbort}, {[]string{"c"}, kgo.TryCommit}} {
			if err := cl.BeginTransaction(); err != nil {
				return "", err
			}
			if err := cl.ProduceSync(limited, texts(t+"-tx", one.texts...)...).FirstErr(); err != nil {
				return "", err
			}
			if err := cl.EndTransaction(limited, one.commit); err != nil {
				return "", err
			}
		}
		got, err := read(t+"-tx", 3, 0, kgo.NewOffset().AtStart(), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		return strings.Join(values(got, 3), " "), err
	})
	Step("a topic is deleted", false, func() (bool, error) {
		if _, err := admin.DeleteTopic(ctx, t); err != nil {
			return false, err
		}
		there := func() bool { told, err := admin.ListTopics(ctx); return err != nil || told.Has(t) }
		Eventually(10*time.Second, func() bool { return !there() })
		return there(), nil
	})
}

func main() {
	Begin("franz-go", "github.com/twmb/franz-go")
	var cancel context.CancelFunc
	ctx, cancel = context.WithTimeout(ctx, 240*time.Second)
	defer cancel()
	cl := client()
	defer cl.Close()
	admin = kadm.NewClient(cl)
	topics()
	records()
	groups()
	refusals()
	End()
}
