// Requests that are wrong, byte for byte: each is sent as it is, and what comes back (HTTP status, content type, gRPC status
// and message, or the body) is held against what etcd 3.7.3 answers, which stands in wanted.txt.
//
//	ETCD_ENDPOINTS=HOST:PORT bad-requests            checks
//	ETCD_ENDPOINTS=HOST:PORT bad-requests --record   prints wanted.txt anew, from a real etcd
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	. "buttress/conformance/checks"
)

//go:embed wanted.txt
var wanted string

var (
	address = strings.Split(os.Getenv("ETCD_ENDPOINTS"), ",")[0]
	two     = &http.Client{Transport: &http2.Transport{
		AllowHTTP: true,
		DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
		DisableCompression: true,
	}}
	one   = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	older = regexp.MustCompile(`"error":"(?:[^"\\]|\\.)*",`)
	// What differs from run to run: who answered, and when.
	changing = regexp.MustCompile(`"(cluster_id|member_id|revision|raft_term|ID)":"[0-9]+"`)
)

// answer is one case with what came back.
type answer struct{ name, said string }

var answers []answer

// differing are calls whose answer changes with headers that change nothing.
var differing []string

func note(name, said string) {
	if len(said) > 600 {
		said = fmt.Sprintf("%s… (%d bytes)", said[:200], len(said))
	}
	// Go's protobuf writes one space or the other, or one more in its JSON, so that nobody relies on its texts.
	said = strings.NewReplacer("\u00a0", " ", `\u00a0`, " ", `, "`, `,"`).Replace(said)
	answers = append(answers, answer{name, strings.ReplaceAll(said, "\n", `\n`)})
}

func frame(message []byte) []byte {
	head := make([]byte, 5, 5+len(message))
	binary.BigEndian.PutUint32(head[1:], uint32(len(message)))
	return append(head, message...)
}

func encoded(message proto.Message) []byte {
	bytes, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return bytes
}

type header map[string]string

// grpc sends a body over HTTP/2 and says what came back.
func grpc(method, path string, body []byte, headers header) string {
	within, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(within, method, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return "no request: " + err.Error()
	}
	request.Header.Set("content-type", "application/grpc")
	request.Header.Set("te", "trailers")
	for name, value := range headers {
		if value == "" {
			request.Header.Del(name)
		} else {
			request.Header.Set(name, value)
		}
	}
	response, err := two.Do(request)
	if err != nil {
		return "no answer: " + short(err)
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	text := fmt.Sprintf("HTTP %d %s", response.StatusCode, response.Header.Get("content-type"))
	trailer := func(name string) string {
		if value, ok := response.Trailer[http.CanonicalHeaderKey(name)]; ok {
			return value[0]
		}
		return response.Header.Get(name)
	}
	// A space may stand for itself or for %20.
	told, bad := url.PathUnescape(trailer("grpc-message"))
	if bad != nil {
		told = "not percent-encoded: " + trailer("grpc-message")
	}
	text += fmt.Sprintf(", status %s %q", trailer("grpc-status"), told)
	if len(said) > 0 && !strings.HasPrefix(response.Header.Get("content-type"), "application/grpc") {
		text += fmt.Sprintf(", %q", said)
	} else if len(said) > 0 {
		text += ", a message"
	}
	if err != nil {
		text += ", then " + short(err)
	}
	return text
}

func short(err error) string {
	text := err.Error()
	if at := strings.LastIndex(text, ": "); at >= 0 {
		text = text[at+2:]
	}
	return text
}

// call is a bad request to a method of a service; to those of KV in every way that a server may tell apart.
func call(name, path string, message proto.Message) {
	raw(name, path, frame(encoded(message)))
}

func raw(name, path string, body []byte) {
	plain := grpc("POST", path, body, nil)
	note(name, plain)
	if !strings.HasPrefix(path, "/etcdserverpb.KV/") {
		return
	}
	for _, more := range []header{{"hasleader": "true"}, {"grpc-encoding": "identity"}} {
		if said := grpc("POST", path, body, more); said != plain {
			differing = append(differing, fmt.Sprintf("%s with %v: %s", name, more, said))
		}
	}
}

// watch sends requests on a stream that stays open, and says what the first answers are.
func watch(name string, count int, requests ...*pb.WatchRequest) {
	within, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	reader, writer := io.Pipe()
	request, err := http.NewRequestWithContext(within, "POST", "http://"+address+"/etcdserverpb.Watch/Watch", reader)
	if err != nil {
		panic(err)
	}
	request.Header.Set("content-type", "application/grpc")
	request.Header.Set("te", "trailers")
	go func() {
		for _, request := range requests {
			_, _ = writer.Write(frame(encoded(request)))
		}
	}()
	response, err := two.Do(request)
	if err != nil {
		note(name, "no answer: "+short(err))
		return
	}
	defer response.Body.Close()
	var said []string
	for range count {
		head := make([]byte, 5)
		if _, err := io.ReadFull(response.Body, head); err != nil {
			said = append(said, fmt.Sprintf("end: status %s %q", response.Trailer.Get("grpc-status"), response.Trailer.Get("grpc-message")))
			break
		}
		message := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(response.Body, message); err != nil {
			said = append(said, "half a message")
			break
		}
		var answer pb.WatchResponse
		if err := proto.Unmarshal(message, &answer); err != nil {
			said = append(said, err.Error())
			break
		}
		said = append(said, fmt.Sprintf("id %d created %v canceled %v reason %q compacted %v",
			answer.WatchId, answer.Created, answer.Canceled, answer.CancelReason, answer.CompactRevision > 0))
	}
	note(name, strings.Join(said, "; "))
}

// page sends a request over HTTP/1.1.
func page(name, method, path, body string, headers header) {
	within, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(within, method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := one.Do(request)
	if err != nil {
		note(name, "no answer: "+short(err))
		return
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		said = append(said, (" then " + short(err))...)
	}
	text := changing.ReplaceAllString(string(said), `"$1":"…"`)
	// Clients of before 3.6 read the message under this name too.
	text = older.ReplaceAllString(text, "")
	note(name, fmt.Sprintf("HTTP %d %s %s", response.StatusCode, response.Header.Get("content-type"), text))
}

func put(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func get(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func del(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func nested(txn *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}
}

func puts(count int) (ops []*pb.RequestOp) {
	for i := range count {
		ops = append(ops, put(fmt.Sprintf("bad/%d", i), ""))
	}
	return ops
}

func deep(levels int) *pb.TxnRequest {
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/deep", "")}}
	for range levels {
		txn = &pb.TxnRequest{Success: []*pb.RequestOp{nested(txn)}}
	}
	return txn
}

const (
	kvRange  = "/etcdserverpb.KV/Range"
	kvPut    = "/etcdserverpb.KV/Put"
	kvDelete = "/etcdserverpb.KV/DeleteRange"
	kvTxn    = "/etcdserverpb.KV/Txn"
	compact  = "/etcdserverpb.KV/Compact"
	stream   = "/etcdserverpb.KV/RangeStream"
	future   = int64(1) << 40
)

func keys() {
	key := []byte("bad/key")
	for _, c := range []struct {
		name    string
		request *pb.RangeRequest
	}{
		{"without a key", &pb.RangeRequest{}},
		{"an unknown order", &pb.RangeRequest{Key: key, SortOrder: 9}},
		{"an unknown target", &pb.RangeRequest{Key: key, SortTarget: 9}},
		{"a target below zero", &pb.RangeRequest{Key: key, SortTarget: -1}},
		{"a future revision", &pb.RangeRequest{Key: key, Revision: future}},
		{"a compacted revision", &pb.RangeRequest{Key: key, Revision: 1}},
		{"numbers below zero", &pb.RangeRequest{Key: key, Revision: -1, Limit: -1, MinModRevision: -1, MaxModRevision: -1}},
		{"an end before the key", &pb.RangeRequest{Key: key, RangeEnd: []byte("a")}},
		{"a key of 9,000 bytes", &pb.RangeRequest{Key: bytes.Repeat([]byte("k"), 9000)}},
		{"a message of 3 MiB", &pb.RangeRequest{Key: bytes.Repeat([]byte("k"), 3<<20)}},
	} {
		call("a range, "+c.name, kvRange, c.request)
		if !strings.HasPrefix(c.name, "numbers") {
			note("a streamed range, "+c.name, grpc("POST", stream, frame(encoded(c.request)), nil))
		}
	}
	note("a streamed range, sorted", grpc("POST", stream, frame(encoded(&pb.RangeRequest{Key: key, SortOrder: pb.RangeRequest_DESCEND})), nil))
	note("a streamed range, sorted without an order", grpc("POST", stream, frame(encoded(&pb.RangeRequest{Key: key, SortTarget: pb.RangeRequest_VALUE})), nil))
	note("a streamed range, with bounds", grpc("POST", stream, frame(encoded(&pb.RangeRequest{Key: key, MaxCreateRevision: -1})), nil))
	for _, c := range []struct {
		name    string
		request *pb.PutRequest
	}{
		{"without a key", &pb.PutRequest{Value: []byte("v")}},
		{"a value that is to be ignored", &pb.PutRequest{Key: key, Value: []byte("v"), IgnoreValue: true}},
		{"a lease that is to be ignored", &pb.PutRequest{Key: key, Lease: 7, IgnoreLease: true}},
		{"the value of a key that is not there", &pb.PutRequest{Key: []byte("bad/none"), IgnoreValue: true}},
		{"the lease of a key that is not there", &pb.PutRequest{Key: []byte("bad/none"), IgnoreLease: true}},
		{"an unknown lease", &pb.PutRequest{Key: key, Lease: 7}},
		{"a lease below zero", &pb.PutRequest{Key: key, Lease: -7}},
		{"a key of 9,000 bytes", &pb.PutRequest{Key: bytes.Repeat([]byte("k"), 9000)}},
		{"a value that is too large", &pb.PutRequest{Key: key, Value: make([]byte, 3<<19)}},
		{"a message of 3 MiB", &pb.PutRequest{Key: key, Value: make([]byte, 3<<20)}},
	} {
		call("a put, "+c.name, kvPut, c.request)
	}
	call("a delete, without a key", kvDelete, &pb.DeleteRangeRequest{})
	call("a delete, an end before the key", kvDelete, &pb.DeleteRangeRequest{Key: key, RangeEnd: []byte("a")})
	call("a delete, a message of 3 MiB", kvDelete, &pb.DeleteRangeRequest{Key: make([]byte, 3<<20)})
	for _, revision := range []int64{0, -1, 1, future} {
		call(fmt.Sprintf("a compaction at %d", revision), compact, &pb.CompactionRequest{Revision: revision})
	}
}

func transactions() {
	equal := func(key string) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}
	}
	var compares []*pb.Compare
	for range 129 {
		compares = append(compares, equal("bad/key"))
	}
	for _, c := range []struct {
		name string
		txn  *pb.TxnRequest
	}{
		{"129 operations", &pb.TxnRequest{Success: puts(129)}},
		{"129 operations in the branch that is not taken", &pb.TxnRequest{Failure: puts(129)}},
		{"129 compares", &pb.TxnRequest{Compare: compares}},
		{"128 operations and one within", &pb.TxnRequest{Success: append(puts(127), nested(&pb.TxnRequest{Success: puts(2)}))}},
		{"a key twice", &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", "1"), put("bad/a", "2")}}},
		{"a key twice in the branch that is not taken", &pb.TxnRequest{Failure: []*pb.RequestOp{put("bad/a", "1"), put("bad/a", "2")}}},
		{"a key that is put and deleted", &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", "1"), del("bad/", "bad0")}}},
		{"a key that is deleted and put", &pb.TxnRequest{Success: []*pb.RequestOp{del("bad/", "bad0"), put("bad/a", "1")}}},
		{"a key that is put within too", &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", "1"), nested(&pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", "2")}})}}},
		{"a key that is put in both branches within", &pb.TxnRequest{Success: []*pb.RequestOp{nested(&pb.TxnRequest{
			Success: []*pb.RequestOp{put("bad/a", "2")}, Failure: []*pb.RequestOp{put("bad/a", "3")}})}}},
		{"deletes that overlap", &pb.TxnRequest{Success: []*pb.RequestOp{del("bad/", "bad0"), del("bad/a", "")}}},
		{"nested 20 deep", deep(20)},
		{"nested 200 deep", deep(200)},
		{"an operation that says nothing", &pb.TxnRequest{Success: []*pb.RequestOp{{}}}},
		{"an operation that says nothing and is not taken", &pb.TxnRequest{Failure: []*pb.RequestOp{{}}}},
		{"an unknown relation", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("bad/a"), Result: 9}}}},
		{"an unknown target", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("bad/a"), Target: 9}}}},
		{"a compare without a key", &pb.TxnRequest{Compare: []*pb.Compare{equal("")}}},
		{"a compare without its operand", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("bad/none"), Target: pb.Compare_MOD}}}},
		{"a compare with another operand", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("bad/none"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_Version{Version: 3}}}}},
		{"a range without a key", &pb.TxnRequest{Success: []*pb.RequestOp{get(&pb.RangeRequest{})}}},
		{"a put without a key", &pb.TxnRequest{Success: []*pb.RequestOp{put("", "")}}},
		{"a delete without a key", &pb.TxnRequest{Success: []*pb.RequestOp{del("", "")}}},
		{"a range with an unknown order", &pb.TxnRequest{Success: []*pb.RequestOp{get(&pb.RangeRequest{Key: []byte("bad/a"), SortOrder: 9})}}},
		{"a range of a future revision", &pb.TxnRequest{Success: []*pb.RequestOp{get(&pb.RangeRequest{Key: []byte("bad/a"), Revision: future})}}},
		{"a range of a compacted revision", &pb.TxnRequest{Success: []*pb.RequestOp{get(&pb.RangeRequest{Key: []byte("bad/a"), Revision: 1})}}},
		{"a range of a future revision beside a put", &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", ""), get(&pb.RangeRequest{Key: []byte("bad/a"), Revision: future})}}},
		{"a put with an unknown lease", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("bad/a"), Lease: 7}}}}}},
		{"a put that keeps the value of no key", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("bad/none"), IgnoreValue: true}}}}}},
		{"a put that keeps a value and gives one", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("bad/none"), Value: []byte("v"), IgnoreValue: true}}}}}},
		{"values that are too large together", &pb.TxnRequest{Success: []*pb.RequestOp{put("bad/a", strings.Repeat("a", 1<<20)), put("bad/b", strings.Repeat("b", 1<<19))}}},
		{"nothing", &pb.TxnRequest{}},
	} {
		call("a transaction, "+c.name, kvTxn, c.txn)
	}
}

// leading is the one of the servers that leads, for a call that only a leader takes.
func leading() string {
	for _, server := range strings.Split(os.Getenv("ETCD_ENDPOINTS"), ",") {
		response, err := one.Post("http://"+server+"/v3/maintenance/status", "application/json", strings.NewReader("{}"))
		if err != nil {
			continue
		}
		var status struct {
			Header struct {
				MemberID string `json:"member_id"`
			}
			Leader string
		}
		err = json.NewDecoder(response.Body).Decode(&status)
		response.Body.Close()
		if err == nil && status.Leader == status.Header.MemberID {
			return server
		}
	}
	return address
}

func others() {
	call("a lease that lives for ever", "/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{TTL: 9_000_000_001})
	call("a lease of a number that is taken", "/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{TTL: 600, ID: 4711})
	call("revoking no lease", "/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7})
	call("looking at no lease", "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 7})
	any := address
	address = leading()
	call("leadership to nobody", "/etcdserverpb.Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: 7})
	address = any
	call("a hash of a future revision", "/etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{Revision: future})
	call("a hash of a compacted revision", "/etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{Revision: 1})
	call("removing no member", "/etcdserverpb.Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: 7})
	call("promoting no member", "/etcdserverpb.Cluster/MemberPromote", &pb.MemberPromoteRequest{ID: 7})
	call("signing in where nobody has to", "/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{Name: "a", Password: "b"})
	call("enabling authentication without root", "/etcdserverpb.Auth/AuthEnable", &pb.AuthEnableRequest{})
	call("no user", "/etcdserverpb.Auth/UserGet", &pb.AuthUserGetRequest{Name: "nobody"})
	call("no role", "/etcdserverpb.Auth/RoleGet", &pb.AuthRoleGetRequest{Role: "none"})

	create := func(w *pb.WatchCreateRequest) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: w}}
	}
	key := []byte("bad/key")
	watch("a watch from a compacted revision", 2, create(&pb.WatchCreateRequest{Key: key, StartRevision: 1}))
	watch("a watch of an empty range", 1, create(&pb.WatchCreateRequest{Key: key, RangeEnd: []byte("a")}))
	watch("a watch of a number that is taken", 2, create(&pb.WatchCreateRequest{Key: key, WatchId: 5}), create(&pb.WatchCreateRequest{Key: key, WatchId: 5}))
	watch("a watch from a revision below zero", 1, create(&pb.WatchCreateRequest{Key: key, StartRevision: -1}))
	watch("a watch without a key", 1, create(&pb.WatchCreateRequest{}))
	watch("a watch with an unknown filter", 1, create(&pb.WatchCreateRequest{Key: key, Filters: []pb.WatchCreateRequest_FilterType{9}}))
	watch("cancelling no watch, and then one that is", 2,
		&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}},
		create(&pb.WatchCreateRequest{Key: key}),
		&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 0}}})
	watch("a watch request that says nothing, and then a watch", 1, &pb.WatchRequest{}, create(&pb.WatchCreateRequest{Key: key}))
}

func transport() {
	good := frame(encoded(&pb.RangeRequest{Key: []byte("bad/key")}))
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"half a head", []byte{0, 0, 0}},
		{"half a message", []byte{0, 0, 0, 0, 5, 'a', 'b'}},
		{"a message that is none", []byte{0, 0, 0, 0, 3, 0xff, 0xff, 0xff}},
		{"a field of a wrong type", []byte{0, 0, 0, 0, 2, 0x08, 0x01}},
		{"an unknown field", append([]byte{0, 0, 0, 0, 6, 0x0a, 1, 'k'}, 0xf8, 0x07, 1)},
		{"a message that says that it is compressed", []byte{1, 0, 0, 0, 1, 'a'}},
		{"a flag that there is not", []byte{7, 0, 0, 0, 1, 'a'}},
		{"a length of 4 GiB", []byte{0, 0xff, 0xff, 0xff, 0xff}},
		{"two messages", append(append([]byte{}, good...), good...)},
		{"a message and half a head", append(append([]byte{}, good...), 0, 0)},
		{"an empty message", []byte{0, 0, 0, 0, 0}},
	} {
		raw("a body of "+c.name, kvRange, c.body)
		if c.name != "two messages" && c.name != "an unknown field" {
			note("a body of "+c.name+", to a lease", grpc("POST", "/etcdserverpb.Lease/LeaseRevoke", c.body, nil))
		}
	}
	for _, path := range []string{"/etcdserverpb.KV/Nothing", "/etcdserverpb.Watch/Nothing", "/nobody.Knows/This", "/etcdserverpb.KV", "/", "/etcdserverpb.KV/", "/v3/kv/range", "/etcdserverpb.KV/Range/More"} {
		note("a call of "+path, grpc("POST", path, good, nil))
	}
	for _, c := range []struct {
		name, method string
		headers      header
	}{
		{"GET", "GET", nil},
		{"PUT", "PUT", nil},
		{"a content type of text", "POST", header{"content-type": "text/plain"}},
		{"a content type of JSON", "POST", header{"content-type": "application/json"}},
		{"no content type", "POST", header{"content-type": ""}},
		{"a content type that begins like gRPC's", "POST", header{"content-type": "application/grpcs"}},
		{"a subtype", "POST", header{"content-type": "application/grpc+proto"}},
		{"an unknown subtype", "POST", header{"content-type": "application/grpc+cheese"}},
		{"an encoding that there is not", "POST", header{"grpc-encoding": "cheese"}},
		{"no word of trailers", "POST", header{"te": ""}},
		{"a timeout that is none", "POST", header{"grpc-timeout": "soon"}},
		{"a timeout that is over", "POST", header{"grpc-timeout": "0n"}},
		{"a token that nobody gave", "POST", header{"token": "cheese"}},
		{"a leader that is half required", "POST", header{"hasleader": "perhaps"}},
	} {
		note("a call with "+c.name, grpc(c.method, kvRange, good, c.headers))
	}
}

func gateway() {
	b64 := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	key := b64("bad/key")
	for _, c := range []struct{ name, path, body string }{
		{"no JSON", "/v3/kv/range", "{"},
		{"text", "/v3/kv/range", "cheese"},
		{"a list", "/v3/kv/range", "[]"},
		{"null", "/v3/kv/range", "null"},
		{"nothing", "/v3/kv/range", ""},
		{"an empty object", "/v3/kv/range", "{}"},
		{"more than an object", "/v3/kv/range", `{"key":"` + key + `"} {}`},
		{"bytes that are no base64", "/v3/kv/range", `{"key":"*"}`},
		{"bytes without padding", "/v3/kv/range", `{"key":"YQ"}`},
		{"bytes that are a number", "/v3/kv/range", `{"key":1}`},
		{"a number that is a text", "/v3/kv/range", `{"key":"` + key + `","limit":"cheese"}`},
		{"a number that is too large", "/v3/kv/range", `{"key":"` + key + `","limit":"9223372036854775808"}`},
		{"a number with a fraction", "/v3/kv/range", `{"key":"` + key + `","limit":1.5}`},
		{"a word for yes", "/v3/kv/range", `{"key":"` + key + `","count_only":"yes"}`},
		{"an unknown field", "/v3/kv/range", `{"key":"` + key + `","cheese":1}`},
		{"a field twice", "/v3/kv/range", `{"key":"` + key + `","key":"` + key + `"}`},
		{"an unknown word of an enum", "/v3/kv/range", `{"key":"` + key + `","sort_order":"SIDEWAYS"}`},
		{"an unknown number of an enum", "/v3/kv/range", `{"key":"` + key + `","sort_order":9}`},
		{"a future revision", "/v3/kv/range", `{"key":"` + key + `","revision":"1099511627776"}`},
		{"a compacted revision", "/v3/kv/range", `{"key":"` + key + `","revision":"1"}`},
		{"a put without a key", "/v3/kv/put", `{"value":"` + key + `"}`},
		{"a put with an unknown lease", "/v3/kv/put", `{"key":"` + key + `","lease":"7"}`},
		{"a put that is too large", "/v3/kv/put", `{"key":"` + key + `","value":"` + b64(strings.Repeat("v", 3<<19)) + `"}`},
		{"a transaction with a key twice", "/v3/kv/txn", `{"success":[{"requestPut":{"key":"` + key + `"}},{"requestPut":{"key":"` + key + `"}}]}`},
		{"a transaction with two operations in one", "/v3/kv/txn", `{"success":[{"requestPut":{"key":"` + key + `"},"requestRange":{"key":"` + key + `"}}]}`},
		{"a transaction with an unknown target", "/v3/kv/txn", `{"compare":[{"key":"` + key + `","target":"CHEESE"}]}`},
		{"revoking no lease", "/v3/lease/revoke", `{"ID":"7"}`},
		{"a compaction of the future", "/v3/kv/compaction", `{"revision":"1099511627776"}`},
		{"a path that there is not", "/v3/kv/cheese", "{}"},
		{"a streamed range", "/v3/kv/rangestream", "{}"},
		{"an older version", "/v3beta/kv/range", "{}"},
	} {
		page("JSON: "+c.name, "POST", c.path, c.body, header{"content-type": "application/json"})
	}
	page("JSON: as text", "POST", "/v3/kv/range", `{"key":"`+key+`","count_only":true}`, header{"content-type": "text/plain"})
	page("JSON: with GET", "GET", "/v3/kv/range", "", nil)
	page("JSON: with DELETE", "DELETE", "/v3/kv/range", "", nil)
	page("a page that there is not", "GET", "/cheese", "", nil)
	page("a page with POST", "POST", "/health", "", nil)
	page("the version with POST", "POST", "/version", "", nil)
	page("gRPC over HTTP/1.1", "POST", kvRange, "\x00\x00\x00\x00\x00", header{"content-type": "application/grpc"})
}

func main() {
	if address == "" {
		fmt.Fprintln(os.Stderr, "error: no server is named\n\nhint: set ETCD_ENDPOINTS")
		os.Exit(2)
	}
	// A key with a history that is compacted, and a lease whose number is taken.
	for i := range 3 {
		grpc("POST", kvPut, frame(encoded(&pb.PutRequest{Key: []byte("bad/key"), Value: []byte{byte('0' + i)}})), nil)
	}
	grpc("POST", "/etcdserverpb.Lease/LeaseGrant", frame(encoded(&pb.LeaseGrantRequest{TTL: 600, ID: 4711})), nil)
	grpc("POST", compact, frame(encoded(&pb.CompactionRequest{Revision: 3})), nil)
	// A member may be behind with what it compacts.
	time.Sleep(500 * time.Millisecond)
	keys()
	transactions()
	others()
	transport()
	gateway()
	grpc("POST", "/etcdserverpb.Lease/LeaseRevoke", frame(encoded(&pb.LeaseRevokeRequest{ID: 4711})), nil)
	grpc("POST", kvDelete, frame(encoded(&pb.DeleteRangeRequest{Key: []byte("bad/"), RangeEnd: []byte("bad0")})), nil)

	if len(os.Args) > 1 && os.Args[1] == "--record" {
		for _, answer := range answers {
			fmt.Printf("%s\t%s\n", answer.name, answer.said)
		}
		return
	}
	Begin("bad-requests", "1")
	known := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(strings.ReplaceAll(wanted, `, "`, `,"`)), "\n") {
		name, said, _ := strings.Cut(line, "\t")
		known[name] = said
	}
	for _, answer := range answers {
		Check(answer.name, known[answer.name], answer.said)
	}
	Check("every answer that is known was asked for", len(known), len(answers))
	Check("a leader that is required and an encoding that is named change nothing", "", strings.Join(differing, "; "))
	End()
}
