// etcd's tool for its files, from its released module, and one command more: `check FILE` has bbolt look at every page.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
)

func check(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: check FILE")
	}
	db, err := bolt.Open(args[0], 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		var all error
		for err := range tx.Check() {
			all = errors.Join(all, err)
		}
		if all == nil {
			fmt.Println("OK")
		}
		return all
	})
}

func main() {
	root := &cobra.Command{Use: "etcdutl", SilenceUsage: true}
	root.PersistentFlags().StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple", "fields, json, protobuf, simple or table")
	root.AddCommand(etcdutl.NewSnapshotCommand(), etcdutl.NewHashKVCommand(), &cobra.Command{Use: "check", RunE: check})
	if err := root.Execute(); err != nil {
		os.Exit(1)
	}
}
