package ends_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/test/bench/ends"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == ends.Command { // this program is an end
		if err := ends.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// start starts an end in a namespace of its own, where it talks with itself.
func start(t *testing.T) *ends.End {
	t.Helper()
	if err := kernel.HaveNamespaces(); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := kernel.DeleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	if err := kernel.SetLoopbackUp(ns); err != nil {
		t.Fatal(err)
	}
	e, err := ends.Start("here", ns, ends.Anywhere)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	return e
}

func at(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

func TestKindsOfTraffic(t *testing.T) {
	t.Parallel()
	e := start(t)
	const long = 30 * time.Millisecond
	for name, c := range map[string]struct {
		r    ends.Request
		want func(r ends.Result) bool
	}{
		"stream":  {ends.Request{Kind: ends.Stream, To: at(ends.SinkPort), Number: 3, For: long}, func(r ends.Result) bool { return r.Took >= long }},
		"flood":   {ends.Request{Kind: ends.Flood, To: at(ends.SinkPort), Size: 100, For: long}, func(r ends.Result) bool { return r.Packets > 0 && r.Bytes == 100*r.Packets }},
		"flows":   {ends.Request{Kind: ends.Flood, To: at(ends.SinkPort), Flows: 300, For: long}, func(r ends.Result) bool { return r.Packets > 0 && r.Lost >= 0 }},
		"ask":     {ends.Request{Kind: ends.Ask, To: at(ends.EchoPort), Number: 2, For: long}, func(r ends.Result) bool { return r.Count > 1 && r.P50 > 0 && r.P50 <= r.P99 && r.P99 <= r.Max }},
		"paced":   {ends.Request{Kind: ends.Ask, To: at(ends.EchoPort), For: long, Pace: 10 * time.Millisecond}, func(r ends.Result) bool { return r.Count >= 1 && r.Count <= 4 }},
		"connect": {ends.Request{Kind: ends.Connect, To: at(ends.GreetPort), Number: 2, For: long}, func(r ends.Result) bool { return r.Count > 0 }},
	} {
		r, err := e.Send(t.Context(), c.r)
		if err != nil || !c.want(r) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r, err := e.Send(t.Context(), ends.Request{Kind: ends.Count}); err != nil || r.Bytes < 3*(128<<10) {
		t.Errorf("the sink counts %+v, %v", r, err)
	}
}

func TestErrorsComeBack(t *testing.T) {
	t.Parallel()
	e := start(t)
	for want, r := range map[string]ends.Request{
		"not known":          {Kind: "smoke"},
		"connection refused": {Kind: ends.Stream, To: at(1)},
		"with 127.0.0.1:2":   {Kind: ends.Connect, To: at(2), For: 10 * time.Millisecond},
	} {
		if _, err := e.Send(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Send(ctx, ends.Request{Kind: ends.Stream, To: at(ends.SinkPort), For: time.Second}); err == nil {
		t.Error("nobody waits for this one, and it succeeds")
	}
}

// TestEndEndsWithItsStarter: whoever waits is told, and nobody after.
func TestEndEndsWithItsStarter(t *testing.T) {
	t.Parallel()
	e := start(t)
	waiting := make(chan error, 1)
	go func() {
		_, err := e.Send(t.Context(), ends.Request{Kind: ends.Ask, To: at(ends.EchoPort), For: time.Minute})
		waiting <- err
	}()
	for { // until it is under way
		if r, err := e.Send(t.Context(), ends.Request{Kind: ends.Ask, To: at(ends.EchoPort), For: time.Millisecond}); err != nil || r.Count > 0 {
			break
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err == nil {
		t.Error("a request of an end that was ended succeeds")
	}
	if _, err := e.Send(t.Context(), ends.Request{Kind: ends.Count}); err == nil {
		t.Error("an end that has ended answers")
	}
}
