// An issuer of OpenID Connect: zitadel's certified provider with its own example's storage, and keys that can be exchanged while
// it runs.
//
//	issuer [--path /realms/shop] [--cert FILE --key FILE]
//
// prints a line of JSON with its name once it serves. Clients get tokens by their credentials (sid1, verysecret). `POST /control`
// tells it what comes next: {"sign": "ES256"} makes a key that signs from now on, {"retire": true} leaves only that one in the
// key set, {"lifetime_s": -60} is of the tokens to come, {"audience": [...]} too.
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A key that signs; public is what of it stands in the key set.
type key struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func (k key) ID() string                                  { return k.id }
func (k key) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k key) Key() any                                    { return k.private }

type public struct{ key }

func (k public) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k public) Use() string                        { return "sig" }
func (k public) Key() any                           { return k.private.Public() }

func newKey(algorithm string) (key, error) {
	made := key{id: uuid.NewString(), algorithm: jose.SignatureAlgorithm(algorithm)}
	var err error
	switch algorithm {
	case "RS256", "PS256":
		made.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		made.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		made.private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "EdDSA":
		_, made.private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("there is no algorithm %q", algorithm)
	}
	return made, err
}

// The example's storage, but for keys, and for what a token of a client says.
type store struct {
	*storage.Storage
	lock     sync.Mutex
	keys     []key // the last one signs
	lifetime time.Duration
	audience []string
}

func (s *store) SigningKey(context.Context) (op.SigningKey, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.keys[len(s.keys)-1], nil
}

func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	var all []jose.SignatureAlgorithm
	for _, key := range s.keys {
		all = append(all, key.algorithm)
	}
	return all, nil
}

func (s *store) KeySet(context.Context) ([]op.Key, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	var all []op.Key
	for _, key := range s.keys {
		all = append(all, public{key})
	}
	return all, nil
}

// A client whose tokens are JWTs.
type client struct{ op.Client }

func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (s *store) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	known, err := s.Storage.ClientCredentials(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return client{known}, nil
}

func (s *store) ClientCredentialsTokenRequest(ctx context.Context, id string, scopes []string) (op.TokenRequest, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	return &oidc.JWTTokenRequest{Subject: id, Audience: s.audience, Scopes: scopes}, nil
}

func (s *store) CreateAccessToken(ctx context.Context, request op.TokenRequest) (string, time.Time, error) {
	id, _, err := s.Storage.CreateAccessToken(ctx, request)
	s.lock.Lock()
	defer s.lock.Unlock()
	return id, time.Now().Add(s.lifetime), err
}

// The scopes that the provider lets the client have, as RFC 9068 writes them.
func (s *store) GetPrivateClaimsFromScopes(_ context.Context, _, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"scope": strings.Join(scopes, " ")}, nil
}

func (s *store) control(w http.ResponseWriter, r *http.Request) {
	var told struct {
		Sign      string   `json:"sign"`
		Retire    bool     `json:"retire"`
		LifetimeS *int64   `json:"lifetime_s"`
		Audience  []string `json:"audience"`
	}
	if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	if told.Sign != "" {
		made, err := newKey(told.Sign)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.keys = append(s.keys, made)
	}
	if told.Retire {
		s.keys = s.keys[len(s.keys)-1:]
	}
	if told.LifetimeS != nil {
		s.lifetime = time.Duration(*told.LifetimeS) * time.Second
	}
	if told.Audience != nil {
		s.audience = told.Audience
	}
}

func main() {
	path := flag.String("path", "", "where below its address the issuer is")
	certificate := flag.String("cert", "", "a certificate, for TLS")
	private := flag.String("key", "", "its key")
	flag.Parse()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	scheme := "http"
	if *certificate != "" {
		scheme = "https"
	}
	issuer := fmt.Sprintf("%s://%s%s", scheme, listener.Addr(), *path)
	first, err := newKey("RS256")
	if err != nil {
		log.Fatal(err)
	}
	store := &store{
		Storage:  storage.NewStorage(storage.NewUserStore(issuer)),
		keys:     []key{first},
		lifetime: 5 * time.Minute,
		audience: []string{"orders"},
	}
	provider, err := op.NewProvider(&op.Config{AuthMethodPost: true}, store, op.StaticIssuer(issuer), op.WithAllowInsecure())
	if err != nil {
		log.Fatal(err)
	}
	routes := http.NewServeMux()
	routes.Handle(*path+"/", http.StripPrefix(*path, provider))
	routes.HandleFunc("POST /control", store.control)
	fmt.Printf("{\"issuer\":%q}\n", issuer)
	if *certificate != "" {
		err = http.ServeTLS(listener, routes, *certificate, *private)
	} else {
		err = http.Serve(listener, routes)
	}
	log.Fatal(err)
}
