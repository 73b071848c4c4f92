// The etcd server, built from its released module. Its own main package has replace directives, which keep `go install`
// from building it.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
