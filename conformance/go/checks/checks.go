// Package checks tells steps as lib.sh describes: one JSON object per line on the standard output.
package checks

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

var count int

func line(fields any) {
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

// Begin names the client, with the version of the module that the build took.
func Begin(client, module string) {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == module {
				version = strings.TrimPrefix(dep.Version, "v")
			}
		}
	}
	line(map[string]string{"client": client, "version": version})
}

// End says how many checks there were.
func End() {
	line(map[string]int{"end": count})
}

// Check tells whether what came back is what must come back.
func Check(name string, wanted, got any) {
	count++
	w, g := fmt.Sprint(wanted), fmt.Sprint(got)
	if w == g {
		line(map[string]any{"check": name, "ok": true})
		return
	}
	line(map[string]any{"check": name, "ok": false, "wanted": w, "got": g})
}

// Step runs one step; an error or a panic counts as what came back, and the run goes on.
func Step[T any](name string, wanted T, action func() (T, error)) {
	defer func() {
		if caught := recover(); caught != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", name, caught, debug.Stack())
			Check(name, wanted, fmt.Sprintf("panic: %v", caught))
		}
	}()
	got, err := action()
	if err != nil {
		Check(name, wanted, "error: "+err.Error())
		return
	}
	Check(name, wanted, got)
}

// Fails checks that an action fails with a text that holds the part.
func Fails(name, part string, action func() error) {
	err := action()
	switch {
	case err == nil:
		Check(name, part, "no error")
	case strings.Contains(err.Error(), part):
		Check(name, part, part)
	default:
		Check(name, part, err.Error())
	}
}

// Eventually waits until the condition is true, at most this long.
func Eventually(limit time.Duration, condition func() bool) bool {
	for end := time.Now().Add(limit); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
