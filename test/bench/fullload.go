package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/test/bench/cost"
	"github.com/netctl/netctl/test/bench/ends"
	"github.com/netctl/netctl/test/bench/results"
)

const (
	fullPods = 110 // as many as a kubelet takes by default
	talkPace = 20 * time.Millisecond
)

// fullLoad measures what an agent weighs while all of a node's pods talk and some of
// them send all that they can: to each other, through the tunnel, to the outside, in
// streams, small packets and new connections.
func (b *bench) fullLoad(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	l, err := b.pods(ctx, &c, b.netctl, podsOf{name: "full", nodes: 2, manifest: idlePods(fullPods + 1)}) // the server is elsewhere
	if err != nil {
		return err
	}
	agents, err := l.agents()
	if err != nil {
		return err
	}
	if err := b.idle(ctx, "agent-110-pods", &way{carriers: agents[:1]}); err != nil {
		return err
	}
	idle, err := cost.Memory(agents[0])
	if err != nil {
		return err
	}
	b.figure("agent-rss-110-pods-idle", idle["VmRSS"], "MB")
	requests, err := b.fullRequests(l)
	if err != nil {
		return err
	}
	most := map[string]float64{}
	var senders sync.WaitGroup
	var broken atomic.Int64
	done := make(chan struct{})
	for e, list := range requests {
		for _, r := range list {
			senders.Go(func() {
				if _, err := e.Send(ctx, r); err != nil && broken.Add(1) == 1 {
					fmt.Fprintln(os.Stderr, "bench: the first that broke:", err)
				}
			})
		}
	}
	go func() {
		senders.Wait()
		close(done)
	}()
	err = watchMemory(ctx, agents[0], most, done)
	<-done
	if err != nil {
		return err
	}
	b.figure("full-load-broken", float64(broken.Load()), "senders") // that heard nothing for ten seconds
	b.figure("agent-rss-110-pods", most["VmRSS"], "MB")
	b.figure("agent-rss-110-pods-anon", most["RssAnon"], "MB")
	b.figure("agent-rss-110-pods-file", most["RssFile"], "MB")
	b.figure("agent-rss-110-pods-shmem", most["RssShmem"], "MB")
	s, err := status.Read(ctx, l.path("nodes", "node1", "run"))
	if err != nil {
		return err
	}
	pauses := s.Process.GC
	b.add(results.Result{Name: "agent-gc-pause-p99", Unit: "ms", Value: pauses.P99, Pairs: 1})
	b.add(results.Result{Name: "agent-gc-pause-max", Unit: "ms", Value: pauses.Max, Pairs: 1})
	b.figure("agent-gc-pauses", float64(pauses.Count), "pauses")
	return nil
}

// fullRequests says who sends what.
func (b *bench) fullRequests(l *testLab) (map[*ends.End][]ends.Request, error) {
	long := pick(b, 3*time.Second, 10*time.Second)
	pods, _, err := l.status()
	if err != nil {
		return nil, err
	}
	server, err := netip.ParseAddr(pods["server"].Addresses[0])
	if err != nil {
		return nil, err
	}
	out := map[*ends.End][]ends.Request{}
	if _, err := b.end(pods["server"].Namespace, ends.Anywhere); err != nil {
		return nil, err
	}
	if _, err := b.end(l.outside(), ends.Anywhere); err != nil {
		return nil, err
	}
	var near []*ends.End
	var addrs []netip.Addr
	for name, p := range pods {
		if name == "server" {
			continue
		}
		e, err := b.end(p.Namespace, ends.Anywhere)
		if err != nil {
			return nil, err
		}
		a, err := netip.ParseAddr(p.Addresses[0])
		if err != nil {
			return nil, err
		}
		near, addrs = append(near, e), append(addrs, a)
	}
	if len(near) != fullPods {
		return nil, fmt.Errorf("%d pods on the node, want %d", len(near), fullPods)
	}
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	for i, e := range near { // everybody talks with the next one and with the other node
		out[e] = []ends.Request{
			{Kind: ends.Ask, To: at(addrs[(i+1)%len(addrs)], ends.EchoPort), Pace: talkPace, For: long},
			{Kind: ends.Ask, To: at(server, ends.EchoPort), Pace: talkPace, For: long},
		}
	}
	for i, r := range []ends.Request{
		{Kind: ends.Stream, To: at(addrs[10], ends.SinkPort), Number: 8},
		{Kind: ends.Stream, To: at(server, ends.SinkPort), Number: 8},
		{Kind: ends.Stream, To: at(outsideAddr(), ends.SinkPort), Number: 8},
		{Kind: ends.Flood, To: at(addrs[11], ends.SinkPort), Flows: 100},
		{Kind: ends.Connect, To: at(addrs[12], ends.GreetPort), Number: 4},
		{Kind: ends.Connect, To: at(outsideAddr(), ends.GreetPort), Number: 4},
	} {
		r.For = long
		out[near[i]] = append(out[near[i]], r)
	}
	return out, nil
}

// watchMemory keeps the largest values of a process until done.
func watchMemory(ctx context.Context, pid int, most map[string]float64, done <-chan struct{}) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		now, err := cost.Memory(pid)
		if err != nil {
			return err
		}
		for k, v := range now {
			most[k] = max(most[k], v)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return nil
		case <-ticker.C:
		}
	}
}
