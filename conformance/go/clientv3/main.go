// The steps of an ordinary user of etcd's Go client.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	. "buttress/conformance/checks"
)

var (
	ctx = context.Background()
	p   = fmt.Sprintf("conformance/go-clientv3/%d/", time.Now().UnixNano())
	cli *clientv3.Client
)

func keys(kvs []*mvccpb.KeyValue) string {
	var names []string
	for _, kv := range kvs {
		names = append(names, strings.TrimPrefix(string(kv.Key), p))
	}
	return strings.Join(names, " ")
}

func get(key string, options ...clientv3.OpOption) (string, error) {
	got, err := cli.Get(ctx, p+key, options...)
	if err != nil {
		return "", err
	}
	return keys(got.Kvs), nil
}

func value(key string, options ...clientv3.OpOption) (string, error) {
	got, err := cli.Get(ctx, p+key, options...)
	if err != nil || len(got.Kvs) == 0 {
		return "gone", err
	}
	return string(got.Kvs[0].Value), nil
}

// put fails the whole run, because nothing after it would mean anything.
func put(key, value string, options ...clientv3.OpOption) int64 {
	done, err := cli.Put(ctx, p+key, value, options...)
	if err != nil {
		panic(err)
	}
	return done.Header.Revision
}

func event(e *clientv3.Event) string {
	text := fmt.Sprintf("%s %s", e.Type, strings.TrimPrefix(string(e.Kv.Key), p))
	if len(e.Kv.Value) > 0 {
		text += " " + string(e.Kv.Value)
	}
	if e.PrevKv != nil {
		text += fmt.Sprintf(" (%s)", e.PrevKv.Value)
	}
	return text
}

// watch opens a watch, does something once it is open, and collects events.
func watch(key string, count int, do func(), options ...clientv3.OpOption) ([]string, error) {
	within, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	channel := cli.Watch(within, p+key, append(options, clientv3.WithCreatedNotify())...)
	var got []string
	for answer := range channel {
		if err := answer.Err(); err != nil {
			return got, err
		}
		if answer.Created && do != nil {
			do()
		}
		for _, e := range answer.Events {
			got = append(got, event(e))
		}
		if len(got) >= count {
			return got, nil
		}
	}
	return got, within.Err()
}

func ranges() {
	Step("put answers with a revision", true, func() (bool, error) {
		done, err := cli.Put(ctx, p+"a", "1")
		return err == nil && done.Header.Revision > 0 && done.Header.ClusterId != 0 && done.Header.MemberId != 0 && done.Header.RaftTerm > 0, err
	})
	Step("get returns what was put", "1", func() (string, error) { return value("a") })
	Step("put returns the previous pair", "1", func() (string, error) {
		done, err := cli.Put(ctx, p+"a", "2", clientv3.WithPrevKV())
		return string(done.PrevKv.Value), err
	})
	for _, k := range []string{"b", "c", "d", "e"} {
		put(k, "v-"+k)
	}
	put("c", "v-c2")
	Step("get by prefix", "a b c d e", func() (string, error) { return get("", clientv3.WithPrefix()) })
	Step("get of a range leaves out its end", "b c", func() (string, error) { return get("b", clientv3.WithRange(p+"d")) })
	Step("from a key on", "d e", func() (string, error) { return get("d", clientv3.WithFromKey(), clientv3.WithLimit(2)) })
	Step("a limit tells that there is more, and how many there are", "a b true 5", func() (string, error) {
		got, err := cli.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithLimit(2))
		if err != nil {
			return "", err
		}
		return fmt.Sprint(keys(got.Kvs), " ", got.More, " ", got.Count), nil
	})
	Step("count only", "0 5", func() (string, error) {
		got, err := cli.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithCountOnly())
		return fmt.Sprint(len(got.Kvs), " ", got.Count), err
	})
	Step("keys only", "a b c d e 0", func() (string, error) {
		got, err := cli.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		size := 0
		for _, kv := range got.Kvs {
			size += len(kv.Value)
		}
		return fmt.Sprint(keys(got.Kvs), " ", size), err
	})
	for _, sorted := range []struct {
		name   string
		target clientv3.SortTarget
		order  clientv3.SortOrder
		wanted string
	}{
		{"key, descending", clientv3.SortByKey, clientv3.SortDescend, "e d c b a"},
		{"creation", clientv3.SortByCreateRevision, clientv3.SortAscend, "a b c d e"},
		{"modification, descending", clientv3.SortByModRevision, clientv3.SortDescend, "c e d b a"},
		{"value, descending", clientv3.SortByValue, clientv3.SortDescend, "e d c b a"},
	} {
		Step("sorted by "+sorted.name, sorted.wanted, func() (string, error) {
			return get("", clientv3.WithPrefix(), clientv3.WithSort(sorted.target, sorted.order))
		})
	}
	Step("the last one created", "e", func() (string, error) { return get("", clientv3.WithLastCreate()...) })
	Step("the first key", "a", func() (string, error) { return get("", clientv3.WithFirstKey()...) })
	Step("the last revision", "c", func() (string, error) { return get("", clientv3.WithLastRev()...) })
	now := put("a", "3")
	Step("get at an older revision", "2", func() (string, error) { return value("a", clientv3.WithRev(now-1)) })
	Step("bounds of the modification", "a", func() (string, error) { return get("", clientv3.WithPrefix(), clientv3.WithMinModRev(now)) })
	Step("bounds of the creation", "a b c d", func() (string, error) {
		e, err := cli.Get(ctx, p+"e")
		if err != nil {
			return "", err
		}
		return get("", clientv3.WithPrefix(), clientv3.WithMaxCreateRev(e.Kvs[0].CreateRevision-1))
	})
	Step("a serializable get", "3", func() (string, error) { return value("a", clientv3.WithSerializable()) })
	streams()
	Step("delete counts and returns what was there", "1 v-e", func() (string, error) {
		done, err := cli.Delete(ctx, p+"e", clientv3.WithPrevKV())
		return fmt.Sprint(done.Deleted, " ", string(done.PrevKvs[0].Value)), err
	})
	Step("delete by prefix counts", int64(2), func() (int64, error) {
		put("x1", "")
		put("x2", "")
		done, err := cli.Delete(ctx, p+"x", clientv3.WithPrefix())
		return done.Deleted, err
	})
	Step("ignoring the value keeps it", "3", func() (string, error) {
		if _, err := cli.Put(ctx, p+"a", "", clientv3.WithIgnoreValue()); err != nil {
			return "", err
		}
		return value("a")
	})
}

// stream reads a range in pieces, and says what they hold together and how many there were.
func stream(key string, options ...clientv3.OpOption) (*clientv3.GetResponse, int, error) {
	pieces, err := cli.GetStream(ctx, p+key, options...)
	if err != nil {
		return nil, 0, err
	}
	whole, count := &clientv3.GetResponse{}, 0
	for piece := range pieces {
		if err := piece.Err(); err != nil {
			return nil, count, err
		}
		count++
		if whole.Header != nil {
			return nil, count, errors.New("a piece came after the last one")
		}
		whole.Kvs = append(whole.Kvs, piece.Kvs...)
		whole.Header, whole.More, whole.Count = piece.Header, piece.More, piece.Count
	}
	if whole.Header == nil || whole.Header.ClusterId == 0 || whole.Header.MemberId == 0 || whole.Header.RaftTerm == 0 {
		return nil, count, fmt.Errorf("the header is %v", whole.Header)
	}
	return whole, count, nil
}

func streams() {
	for i := range 40 {
		put(fmt.Sprintf("z%02d", i), strings.Repeat("x", 100_000))
	}
	now := put("a", "3")
	for _, c := range []struct {
		name    string
		key     string
		options []clientv3.OpOption
	}{
		{"one key", "a", nil},
		{"no key", "nothing", nil},
		{"a prefix", "", []clientv3.OpOption{clientv3.WithPrefix()}},
		{"a prefix up to a limit", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(30)}},
		{"a limit that is not reached", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(1000)}},
		{"keys without values", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithKeysOnly()}},
		{"a count", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}},
		{"an older revision", "", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(now - 5)}},
		{"what one member has", "z", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSerializable()}},
		{"a sort by key", "z", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend)}},
	} {
		Step("a stream is what a range is: "+c.name, "same", func() (string, error) {
			wanted, err := cli.Get(ctx, p+c.key, c.options...)
			if err != nil {
				return "", err
			}
			got, _, err := stream(c.key, c.options...)
			if err != nil {
				return "", err
			}
			if got.Header.Revision != wanted.Header.Revision || got.More != wanted.More || got.Count != wanted.Count || len(got.Kvs) != len(wanted.Kvs) {
				return fmt.Sprint(got.Header.Revision, got.More, got.Count, len(got.Kvs), " not ", wanted.Header.Revision, wanted.More, wanted.Count, len(wanted.Kvs)), nil
			}
			for i := range got.Kvs {
				if !proto.Equal(got.Kvs[i], wanted.Kvs[i]) {
					return fmt.Sprint("another key at ", i), nil
				}
			}
			return "same", nil
		})
	}
	Step("a stream comes in pieces", true, func() (bool, error) {
		_, pieces, err := stream("z", clientv3.WithPrefix())
		return pieces > 1, err
	})
	Step("a stream shows no change that came after its begin", "40 at the first revision", func() (string, error) {
		pieces, err := cli.GetStream(ctx, p+"z", clientv3.WithPrefix())
		if err != nil {
			return "", err
		}
		count, changed := 0, int64(0)
		for piece := range pieces {
			if err := piece.Err(); err != nil {
				return "", err
			}
			if changed == 0 {
				changed = put("z39", "changed")
				put("z40", "new")
			}
			for _, kv := range piece.Kvs {
				count++
				if kv.ModRevision >= changed {
					return fmt.Sprint("a change of ", string(kv.Key)), nil
				}
			}
			if piece.Header != nil && piece.Header.Revision != changed-1 {
				return fmt.Sprint("at ", piece.Header.Revision, ", changed at ", changed), nil
			}
		}
		return fmt.Sprint(count, " at the first revision"), nil
	})
	Fails("a stream sorts by nothing but keys", "RangeStream does not support custom sort orders", func() error {
		_, _, err := stream("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend))
		return err
	})
	Fails("a stream has no bounds of revisions", "RangeStream does not support revision filters", func() error {
		_, _, err := stream("", clientv3.WithPrefix(), clientv3.WithMinModRev(3))
		return err
	})
	Fails("a stream of a future revision", "etcdserver: mvcc: required revision is a future revision", func() error {
		_, _, err := stream("a", clientv3.WithRev(now+1_000_000))
		return err
	})
	if _, err := cli.Delete(ctx, p+"z", clientv3.WithPrefix()); err != nil {
		panic(err)
	}
}

func transactions() {
	Step("a transaction whose compare holds", "true 4", func() (string, error) {
		done, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.Value(p+"a"), "=", "3"), clientv3.Compare(clientv3.Version(p+"a"), ">", 1)).
			Then(clientv3.OpPut(p+"a", "4"), clientv3.OpGet(p+"a")).Else(clientv3.OpGet(p + "a")).Commit()
		if err != nil {
			return "", err
		}
		return fmt.Sprint(done.Succeeded, " ", string(done.Responses[1].GetResponseRange().Kvs[0].Value)), nil
	})
	Step("a transaction whose compare does not hold", "false 4", func() (string, error) {
		done, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(p+"a"), "=", 0)).
			Then(clientv3.OpPut(p+"a", "5")).Else(clientv3.OpGet(p + "a")).Commit()
		if err != nil {
			return "", err
		}
		return fmt.Sprint(done.Succeeded, " ", string(done.Responses[0].GetResponseRange().Kvs[0].Value)), nil
	})
	compare := func(c clientv3.Cmp) (bool, error) {
		done, err := cli.Txn(ctx).If(c).Commit()
		return err == nil && done.Succeeded, err
	}
	lease, err := cli.Grant(ctx, 60)
	if err == nil {
		put("held", "1", clientv3.WithLease(lease.ID))
	}
	for _, c := range []struct {
		name   string
		cmp    clientv3.Cmp
		wanted bool
	}{
		{"less than a value", clientv3.Compare(clientv3.Value(p+"a"), "<", "5"), true},
		{"not a value", clientv3.Compare(clientv3.Value(p+"a"), "!=", "4"), false},
		{"greater than a modification", clientv3.Compare(clientv3.ModRevision(p+"a"), ">", 1), true},
		{"a lease", clientv3.Compare(clientv3.LeaseValue(p+"held"), "!=", 0), true},
		{"every key of a prefix", clientv3.Compare(clientv3.Version(p), ">", 0).WithPrefix(), true},
		{"every value of a range", clientv3.Compare(clientv3.Value(p+"b"), "=", "v-b").WithRange(p + "d"), false},
		{"the value of a missing key", clientv3.Compare(clientv3.Value(p+"missing"), "=", ""), false},
	} {
		Step("a compare of "+c.name, c.wanted, func() (bool, error) { return compare(c.cmp) })
	}
	Step("a transaction in a transaction", "true true inner false 4", func() (string, error) {
		done, err := cli.Txn(ctx).Then(
			clientv3.OpPut(p+"n", "outer"),
			clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Version(p+"a"), ">", 0)}, []clientv3.Op{clientv3.OpPut(p+"n2", "inner"), clientv3.OpGet(p + "n2")}, nil),
			clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Version(p+"a"), "=", 0)}, nil, []clientv3.Op{clientv3.OpGet(p + "a")}),
		).Commit()
		if err != nil {
			return "", err
		}
		first, second := done.Responses[1].GetResponseTxn(), done.Responses[2].GetResponseTxn()
		return fmt.Sprint(done.Succeeded, " ", first.Succeeded, " ", string(first.Responses[1].GetResponseRange().Kvs[0].Value), " ",
			second.Succeeded, " ", string(second.Responses[0].GetResponseRange().Kvs[0].Value)), nil
	})
	Step("everything in a transaction has one revision", true, func() (bool, error) {
		done, err := cli.Txn(ctx).Then(clientv3.OpPut(p+"r1", ""), clientv3.OpPut(p+"r2", ""), clientv3.OpGet(p+"r", clientv3.WithPrefix())).Commit()
		if err != nil {
			return false, err
		}
		kvs := done.Responses[2].GetResponseRange().Kvs
		return len(kvs) == 2 && kvs[0].ModRevision == done.Header.Revision && kvs[1].ModRevision == done.Header.Revision, nil
	})
	Step("software transactional memory moves between accounts", "70 130", func() (string, error) {
		put("from", "100")
		put("to", "100")
		move := func(stm concurrency.STM) error {
			var from, to int
			fmt.Sscan(stm.Get(p+"from"), &from)
			fmt.Sscan(stm.Get(p+"to"), &to)
			stm.Put(p+"from", fmt.Sprint(from-10))
			stm.Put(p+"to", fmt.Sprint(to+10))
			return nil
		}
		failed := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := concurrency.NewSTM(cli, move)
				// The second read is served by any member, at the revision of the first; etcd's may not have heard of it yet.
				for tries := 0; tries < 100 && errors.Is(err, rpctypes.ErrFutureRev); tries++ {
					time.Sleep(10 * time.Millisecond)
					_, err = concurrency.NewSTM(cli, move)
				}
				failed <- err
			}()
		}
		if err := errors.Join(<-failed, <-failed, <-failed); err != nil {
			return "", err
		}
		from, err := value("from")
		to, err2 := value("to")
		return from + " " + to, errors.Join(err, err2)
	})
}

func watches() {
	change := func() {
		put("w", "1")
		put("w", "2")
		if _, err := cli.Delete(ctx, p+"w"); err != nil {
			panic(err)
		}
	}
	start := put("mark", "")
	wanted := []string{"PUT w 1", "PUT w 2", "DELETE w"}
	Step("a live watch", wanted, func() ([]string, error) { return watch("w", 3, change) })
	Step("a watch from an older revision", wanted, func() ([]string, error) { return watch("w", 3, nil, clientv3.WithRev(start+1)) })
	Step("a watch with what was before", []string{"PUT w 1", "PUT w 2 (1)", "DELETE w (2)"}, func() ([]string, error) {
		return watch("w", 3, change, clientv3.WithPrevKV())
	})
	Step("a watch that leaves out puts", []string{"DELETE w"}, func() ([]string, error) { return watch("w", 1, change, clientv3.WithFilterPut()) })
	Step("a watch that leaves out deletes", []string{"PUT w 1", "PUT w 2", "PUT w 1", "PUT w 2"}, func() ([]string, error) {
		return watch("w", 4, func() { change(); change() }, clientv3.WithFilterDelete())
	})
	Step("a watch of a prefix", []string{"PUT wa 1", "PUT wb 2"}, func() ([]string, error) {
		return watch("w", 2, func() { put("wa", "1"); put("wb", "2") }, clientv3.WithPrefix())
	})
	Step("the events of one transaction come together", "2", func() (string, error) {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		channel := cli.Watch(within, p+"together", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-channel
		if _, err := cli.Txn(ctx).Then(clientv3.OpPut(p+"together1", ""), clientv3.OpPut(p+"together2", "")).Commit(); err != nil {
			return "", err
		}
		return fmt.Sprint(len((<-channel).Events)), nil
	})
	Step("a large answer comes in fragments and whole", 12, func() (int, error) {
		body := strings.Repeat("x", 300_000)
		from := int64(0)
		for n := range 12 {
			at := put(fmt.Sprintf("fragment%02d", n), body)
			if from == 0 {
				from = at
			}
		}
		events, err := watch("fragment", 12, nil, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithFragment())
		_, deleted := cli.Delete(ctx, p+"fragment", clientv3.WithPrefix())
		return len(events), errors.Join(err, deleted)
	})
	Step("a watch tells its progress when asked", true, func() (bool, error) {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		channel := cli.Watch(within, p+"progress", clientv3.WithCreatedNotify())
		<-channel
		at := put("other", "")
		for range 50 {
			if err := cli.RequestProgress(within); err != nil {
				return false, err
			}
			answer, open := <-channel
			if !open {
				return false, within.Err()
			}
			if answer.IsProgressNotify() && answer.Header.Revision >= at {
				return true, nil
			}
			time.Sleep(50 * time.Millisecond)
		}
		return false, errors.New("progress stays behind")
	})
	Step("many watches on one stream", "100", func() (string, error) {
		within, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		var channels []clientv3.WatchChan
		for n := range 100 {
			channels = append(channels, cli.Watch(within, fmt.Sprintf("%smany%d", p, n), clientv3.WithCreatedNotify()))
		}
		for _, channel := range channels {
			<-channel
		}
		for n := range 100 {
			put(fmt.Sprintf("many%d", n), "1")
		}
		heard := 0
		for _, channel := range channels {
			if answer := <-channel; len(answer.Events) == 1 {
				heard++
			}
		}
		return fmt.Sprint(heard), nil
	})
}

func revisions() {
	Fails("a future revision", "etcdserver: mvcc: required revision is a future revision", func() error {
		_, err := cli.Get(ctx, p+"a", clientv3.WithRev(1<<40))
		return err
	})
	now := put("a", "6")
	Step("compaction", true, func() (bool, error) {
		_, err := cli.Compact(ctx, now, clientv3.WithCompactPhysical())
		return err == nil, err
	})
	Step("a read of what was compacted is ErrCompacted", true, func() (bool, error) {
		_, err := cli.Get(ctx, p+"a", clientv3.WithRev(now-1))
		return errors.Is(err, rpctypes.ErrCompacted), nil
	})
	Step("compacting twice is ErrCompacted", true, func() (bool, error) {
		_, err := cli.Compact(ctx, now)
		return errors.Is(err, rpctypes.ErrCompacted), nil
	})
	Step("a watch of what was compacted names the revision", int64(0), func() (int64, error) {
		// A watch may come to a member that has not compacted yet, so it is asked again.
		for range 5 {
			within, cancel := context.WithTimeout(ctx, 3*time.Second)
			for answer := range cli.Watch(within, p+"a", clientv3.WithRev(1)) {
				if answer.Canceled && errors.Is(answer.Err(), rpctypes.ErrCompacted) {
					cancel()
					return answer.CompactRevision - now, nil // how far it is from the compacted one
				}
			}
			cancel()
		}
		return -now, errors.New("never cancelled")
	})
}

func leases() {
	Step("a lease is granted, asked and revoked", "60 true leased gone", func() (string, error) {
		lease, err := cli.Grant(ctx, 60)
		if err != nil {
			return "", err
		}
		put("leased", "1", clientv3.WithLease(lease.ID))
		told, err := cli.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			return "", err
		}
		names := []string{}
		for _, key := range told.Keys {
			names = append(names, strings.TrimPrefix(string(key), p))
		}
		if _, err := cli.Revoke(ctx, lease.ID); err != nil {
			return "", err
		}
		then, err := value("leased")
		return fmt.Sprint(told.GrantedTTL, " ", told.TTL > 0 && told.TTL <= 60, " ", strings.Join(names, ","), " ", then), err
	})
	Step("a lease is in the list", true, func() (bool, error) {
		lease, err := cli.Grant(ctx, 60)
		if err != nil {
			return false, err
		}
		all, err := cli.Leases(ctx)
		if err != nil {
			return false, err
		}
		for _, one := range all.Leases {
			if one.ID == lease.ID {
				return true, nil
			}
		}
		return false, nil
	})
	Step("a lease that is kept alive outlives its time, and goes after", "1 true", func() (string, error) {
		lease, err := cli.Grant(ctx, 2)
		if err != nil {
			return "", err
		}
		put("alive", "1", clientv3.WithLease(lease.ID))
		within, cancel := context.WithCancel(ctx)
		answers, err := cli.KeepAlive(within, lease.ID)
		if err != nil {
			cancel()
			return "", err
		}
		go func() {
			for range answers {
			}
		}()
		time.Sleep(5 * time.Second)
		then, err := value("alive")
		cancel()
		return fmt.Sprint(then, " ", Eventually(15*time.Second, func() bool { v, _ := value("alive"); return v == "gone" })), err
	})
	Step("keeping alive once", int64(60), func() (int64, error) {
		lease, err := cli.Grant(ctx, 60)
		if err != nil {
			return 0, err
		}
		answer, err := cli.KeepAliveOnce(ctx, lease.ID)
		if err != nil {
			return 0, err
		}
		return answer.TTL, nil
	})
	Step("a lease that is not there is ErrLeaseNotFound", "true true true", func() (string, error) {
		_, revoked := cli.Revoke(ctx, 99)
		_, kept := cli.KeepAliveOnce(ctx, 99)
		_, stored := cli.Put(ctx, p+"l", "1", clientv3.WithLease(99))
		is := func(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
		return fmt.Sprint(is(revoked), " ", is(kept), " ", is(stored)), nil
	})
	Step("its time to live is -1", int64(-1), func() (int64, error) {
		told, err := cli.TimeToLive(ctx, 99)
		if err != nil {
			return 0, err
		}
		return told.TTL, nil
	})
	Fails("a lease that would live too long", "etcdserver: too large lease TTL", func() error {
		_, err := cli.Grant(ctx, 9_000_000_001)
		return err
	})
	Step("a put without its lease detaches the key", "1", func() (string, error) {
		lease, err := cli.Grant(ctx, 60)
		if err != nil {
			return "", err
		}
		put("detached", "0", clientv3.WithLease(lease.ID))
		put("detached", "1")
		if _, err := cli.Revoke(ctx, lease.ID); err != nil {
			return "", err
		}
		return value("detached")
	})
}

func coordination() {
	Step("a mutex is held by one session at a time", "first, locked by another, second", func() (string, error) {
		one, err := concurrency.NewSession(cli, concurrency.WithTTL(10))
		if err != nil {
			return "", err
		}
		two, err := concurrency.NewSession(cli, concurrency.WithTTL(10))
		if err != nil {
			return "", err
		}
		defer two.Close()
		first, second := concurrency.NewMutex(one, p+"mutex"), concurrency.NewMutex(two, p+"mutex")
		within, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := first.Lock(within); err != nil {
			return "", err
		}
		said := "first, "
		if errors.Is(second.TryLock(within), concurrency.ErrLocked) {
			said += "locked by another, "
		}
		time.AfterFunc(300*time.Millisecond, func() { one.Close() }) // the session ends, and its lock with it
		if err := second.Lock(within); err != nil {
			return said, err
		}
		held, err := cli.Txn(ctx).If(second.IsOwner()).Commit()
		if err == nil && held.Succeeded {
			said += "second"
		}
		return said, errors.Join(err, second.Unlock(ctx))
	})
	Step("an election is won, told, and handed on", "one one two", func() (string, error) {
		sessions := []*concurrency.Session{}
		for range 2 {
			session, err := concurrency.NewSession(cli, concurrency.WithTTL(10))
			if err != nil {
				return "", err
			}
			defer session.Close()
			sessions = append(sessions, session)
		}
		one, two := concurrency.NewElection(sessions[0], p+"election"), concurrency.NewElection(sessions[1], p+"election")
		within, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := one.Campaign(within, "one"); err != nil {
			return "", err
		}
		leader, err := two.Leader(within)
		if err != nil {
			return "", err
		}
		said := string(leader.Kvs[0].Value)
		observed := two.Observe(within)
		said += " " + string((<-observed).Kvs[0].Value)
		time.AfterFunc(300*time.Millisecond, func() { one.Resign(ctx) })
		if err := two.Campaign(within, "two"); err != nil {
			return said, err
		}
		leader, err = one.Leader(within)
		if err != nil {
			return said, err
		}
		return said + " " + string(leader.Kvs[0].Value), nil
	})
}

func cluster(endpoints []string) {
	Step("members have names and addresses", true, func() (bool, error) {
		members, err := cli.MemberList(ctx)
		if err != nil {
			return false, err
		}
		good := len(members.Members) >= len(endpoints)
		for _, m := range members.Members {
			good = good && m.ID != 0 && m.Name != "" && len(m.PeerURLs) > 0 && len(m.ClientURLs) > 0
		}
		return good, nil
	})
	Step("the client finds the endpoints by itself", true, func() (bool, error) {
		err := cli.Sync(ctx)
		return len(cli.Endpoints()) >= len(endpoints), err
	})
	Step("every endpoint names the same leader", 1, func() (int, error) {
		leaders := map[uint64]bool{}
		for _, endpoint := range endpoints {
			status, err := cli.Status(ctx, endpoint)
			if err != nil {
				return 0, err
			}
			if !strings.HasPrefix(status.Version, "3.") || status.RaftIndex == 0 || status.RaftTerm == 0 || status.DbSize == 0 {
				return 0, fmt.Errorf("status is incomplete: %v", status)
			}
			leaders[status.Leader] = true
		}
		return len(leaders), nil
	})
	Step("every endpoint has the same keys", 1, func() (int, error) {
		hashes := map[string]bool{}
		at := put("hashed", "")
		for _, endpoint := range endpoints {
			hash, err := cli.HashKV(ctx, endpoint, at)
			if err != nil {
				return 0, err
			}
			hashes[fmt.Sprint(hash.Hash, " ", hash.CompactRevision)] = true
		}
		return len(hashes), nil
	})
	Step("a snapshot is streamed to its end", true, func() (bool, error) {
		stream, err := cli.Snapshot(ctx)
		if err != nil {
			return false, err
		}
		defer stream.Close()
		size, err := io.Copy(io.Discard, stream)
		return size > 0, err
	})
	Step("no alarm is raised", 0, func() (int, error) {
		alarms, err := cli.AlarmList(ctx)
		if err != nil {
			return 0, err
		}
		return len(alarms.Alarms), nil
	})
	Step("the leadership is moved", true, func() (bool, error) {
		if len(endpoints) < 2 {
			return true, nil
		}
		status, err := cli.Status(ctx, endpoints[0])
		if err != nil {
			return false, err
		}
		members, err := cli.MemberList(ctx)
		if err != nil {
			return false, err
		}
		others := []uint64{}
		leader := ""
		for _, m := range members.Members {
			if m.ID != status.Leader {
				others = append(others, m.ID)
			} else {
				leader = m.ClientURLs[0]
			}
		}
		sort.Slice(others, func(i, j int) bool { return others[i] < others[j] })
		direct, err := clientv3.New(clientv3.Config{Endpoints: []string{leader}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			return false, err
		}
		defer direct.Close()
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := direct.MoveLeader(within, others[0]); err != nil {
			return false, err
		}
		return Eventually(10*time.Second, func() bool {
			status, err := cli.Status(ctx, endpoints[0])
			return err == nil && status.Leader == others[0]
		}), nil
	})
	Step("and everything goes on", "after", func() (string, error) {
		put("a", "after")
		return value("a")
	})
}

func refusals() {
	Fails("an empty key", "etcdserver: key is not provided", func() error {
		_, err := cli.Put(ctx, "", "1")
		return err
	})
	Fails("a key twice in one transaction", "etcdserver: duplicate key given in txn request", func() error {
		_, err := cli.Txn(ctx).Then(clientv3.OpPut(p+"z", "1"), clientv3.OpPut(p+"z", "2")).Commit()
		return err
	})
	Fails("a key that one operation puts and another deletes", "etcdserver: duplicate key given in txn request", func() error {
		_, err := cli.Txn(ctx).Then(clientv3.OpPut(p+"z", "1"), clientv3.OpDelete(p, clientv3.WithPrefix())).Commit()
		return err
	})
	Fails("more operations than a transaction may have", "etcdserver: too many operations in txn request", func() error {
		var many []clientv3.Op
		for n := range 129 {
			many = append(many, clientv3.OpPut(fmt.Sprint(p, n), ""))
		}
		_, err := cli.Txn(ctx).Then(many...).Commit()
		return err
	})
	Fails("a value that is too large", "etcdserver: request is too large", func() error {
		_, err := cli.Put(ctx, p+"large", strings.Repeat("x", 1_700_000))
		return err
	})
	Fails("ignoring the value of a key that is not there", "etcdserver: key not found", func() error {
		_, err := cli.Put(ctx, p+"missing", "", clientv3.WithIgnoreValue())
		return err
	})
	Fails("a failed transaction in which an operation would fail", "etcdserver: requested lease not found", func() error {
		_, err := cli.Txn(ctx).Then(clientv3.OpPut(p+"z", "1", clientv3.WithLease(99))).Commit()
		return err
	})
	Step("and of a refused transaction nothing is done", "gone", func() (string, error) { return value("z") })
}

func main() {
	Begin("go-clientv3", "go.etcd.io/etcd/client/v3")
	endpoints := strings.Split(os.Getenv("ETCD_ENDPOINTS"), ",")
	var err error
	cli, err = clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		Check("the client connects", "connected", err)
		os.Exit(1)
	}
	defer cli.Close()
	var cancel context.CancelFunc
	ctx, cancel = context.WithTimeout(context.Background(), 240*time.Second)
	defer cancel()
	ranges()
	transactions()
	watches()
	revisions()
	leases()
	coordination()
	refusals()
	cluster(endpoints)
	End()
}
