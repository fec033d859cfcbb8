package balancer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/alive"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/proxy/balance"
)

// balanced is a cluster with nodes n1 to n5 and services with and without an address; the one of
// policy Local has endpoints on n2 and n4.
func balanced() (*model.State, []balance.Assignment, []netip.Addr) {
	a := netip.MustParseAddr
	s := &model.State{}
	for i := range 5 {
		s.Nodes = append(s.Nodes, &model.Node{Name: fmt.Sprintf("n%d", i+1)})
	}
	svc := func(name string, f func(*model.Service)) *model.Service {
		one := &model.Service{
			Name: model.Name{Namespace: "d", Name: name}, Type: model.LoadBalancer, ClusterIPs: []netip.Addr{a("10.96.0.1")},
			LoadBalancerIPs: []netip.Addr{a("203.0.113.1")}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
		}
		f(one)
		s.Services = append(s.Services, one)
		return one
	}
	svc("everywhere", func(*model.Service) {})
	svc("local", func(o *model.Service) { o.LoadBalancerIPs, o.ExternalLocal = []netip.Addr{a("203.0.113.2")}, true })
	svc("new", func(o *model.Service) { o.LoadBalancerIPs = nil })
	for _, e := range []struct {
		node  string
		ready bool
	}{{"n2", true}, {"n3", false}, {"n4", true}} {
		s.EndpointSlices = append(s.EndpointSlices, &model.EndpointSlice{
			Name: model.Name{Namespace: "d", Name: "local-" + e.node}, Service: "local",
			Endpoints: []model.Endpoint{{Address: a("10.1.1.1"), Node: e.node, Ready: e.ready}},
		})
	}
	pools, err := balance.ParsePools([]string{"203.0.113.0/28"})
	if err != nil {
		panic(err)
	}
	list, _ := balance.Assign(pools, s.Services)
	return s, list, []netip.Addr{a("203.0.113.1"), a("203.0.113.2")}
}

func peersOf(self string) []alive.Peer {
	var out []alive.Peer
	for i := range 5 {
		if n := fmt.Sprintf("n%d", i+1); n != self {
			out = append(out, alive.Peer{Node: n})
		}
	}
	return out
}

// Of all nodes that live, one answers for each address and one writes each status; for
// policy Local it is one with endpoints.
func TestBalancerTasks(t *testing.T) {
	t.Parallel()
	state, list, served := balanced()
	for dead := range 1 << 5 {
		lives := func(n string) bool { return dead>>(n[1]-'1')&1 == 0 }
		owners, writers := map[string][]string{}, 0
		for i := range 5 {
			self := fmt.Sprintf("n%d", i+1)
			if !lives(self) {
				continue
			}
			answer, write, watch := (&view{self, state, peersOf(self), served}).tasks(list, lives)
			for _, a := range answer {
				owners[a.String()] = append(owners[a.String()], self)
			}
			for _, w := range write {
				if w.Service.Name.Name != "new" || len(w.Addrs) != 1 {
					t.Errorf("%s writes %v", self, w)
				}
				writers++
			}
			if watch[self] {
				t.Errorf("%s watches itself", self)
			}
		}
		for addr, nodes := range owners {
			if len(nodes) != 1 {
				t.Errorf("dead %05b: %s is answered for by %v", dead, addr, nodes)
			}
		}
		for _, n := range owners["203.0.113.2"] {
			if n != "n2" && n != "n4" {
				t.Errorf("dead %05b: %s answers for an address of policy Local and has no endpoint", dead, n)
			}
		}
		if (lives("n2") || lives("n4")) != (len(owners["203.0.113.2"]) == 1) {
			t.Errorf("dead %05b: policy Local is answered for by %v", dead, owners["203.0.113.2"])
		}
		if dead == 0 && (writers != 1 || len(owners["203.0.113.1"]) != 1) {
			t.Errorf("%d writers, owners %v", writers, owners)
		}
	}
}

// What is in no status, or not in force, is not answered for; a node that is to go
// or that is excluded answers for nothing.
func TestBalancerRestraint(t *testing.T) {
	t.Parallel()
	state, list, served := balanced()
	alone := func(string) bool { return false }
	if answer, _, _ := (&view{"n2", state, nil, served}).tasks(list, alone); len(answer) != 2 {
		t.Errorf("alone, it answers for %v", answer)
	}
	if answer, _, _ := (&view{"n2", state, nil, served[:1]}).tasks(list, alone); len(answer) != 1 {
		t.Errorf("it answers for what is not in force: %v", answer)
	}
	state.Nodes = slices.Clone(state.Nodes)
	state.Nodes[1] = &model.Node{Name: "n2", Leaving: true}
	if answer, write, _ := (&view{"n2", state, nil, served}).tasks(list, alone); len(answer)+len(write) > 0 {
		t.Errorf("about to go, it answers for %v and writes %v", answer, write)
	}
	state.Nodes[1] = &model.Node{Name: "n2", Excluded: true}
	if answer, write, _ := (&view{"n2", state, nil, served}).tasks(list, alone); len(answer)+len(write) > 0 {
		t.Errorf("excluded, it answers for %v and writes %v", answer, write)
	}
	if nodes := candidates(state, "n1", peersOf("n1")); slices.Contains(nodes, "n2") || len(nodes) != 4 {
		t.Errorf("candidates %v, want all but n2", nodes)
	}
}

const patience = 30 * time.Second

// recorder is an announcer that says what it was told.
type recorder chan []netip.Addr

func (r recorder) Apply(addrs []netip.Addr) error {
	r <- addrs
	return nil
}

func (recorder) Close() {}

// A node whose port somebody else has cannot show that it lives, so others answer: it
// does not, says so, and begins when it has the port.
func TestBalancerWithoutPort(t *testing.T) {
	t.Parallel()
	state, _, served := balanced()
	self := netip.MustParsePrefix("127.61.7.1/32") // nobody else's on this machine
	taken, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self.Addr(), alive.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	pools, err := balance.ParsePools([]string{"203.0.113.0/28"})
	if err != nil {
		t.Fatal(err)
	}
	reports := make(chan struct{}, 100)
	b := New("n2", pools, nowhere{}, func() { reports <- struct{}{} }, slog.New(slog.DiscardHandler))
	applied := make(recorder)
	b.announce = applied
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.Put(state, true, []netip.Prefix{self}, nil, served)
	deadline := time.After(patience)
	complained := func() bool {
		problems, _ := b.Complaints()
		return slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, "51821") })
	}
	for !complained() {
		select {
		case got := <-applied:
			if len(got) > 0 {
				t.Fatalf("it answers for %v", got)
			}
		case <-deadline:
			t.Fatal("it is not said that the port is taken")
		}
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for answers := 0; answers != len(served); {
		select {
		case got := <-applied:
			answers = len(got)
		case <-deadline:
			t.Fatal("it does not answer though it has the port")
		}
	}
	if complained() || len(reports) < 2 {
		t.Errorf("complaint %v after %d reports, want none after one that came and one that went", complained(), len(reports))
	}
	cancel()
	for {
		select {
		case <-applied:
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

// nowhere takes every status.
type nowhere struct{}

func (nowhere) PublishBalancer(context.Context, model.Name, string, []netip.Addr) error { return nil }

func (nowhere) Live() bool { return true }

// What is written again and again is written more and more rarely; what is new is
// written soon, and so is what has lasted.
func TestWritesSlowDown(t *testing.T) {
	t.Parallel()
	one := func(last byte) balance.Assignment {
		return balance.Assignment{Service: &model.Service{Name: model.Name{Namespace: "d", Name: "s"}, UID: "u"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, last})}}
	}
	w := newWriter(nowhere{}, func() {}, slog.New(slog.DiscardHandler))
	now, want := time.Unix(1000, 0), firstPause
	for range 20 {
		w.ask([]balance.Assignment{one(1)})
		if a, wait := w.next(now); wait != 0 || !slices.Equal(a.Addrs, one(1).Addrs) {
			t.Fatalf("after its pause: %v, wait %v", a, wait)
		}
		w.ask([]balance.Assignment{one(1)}) // undone at once
		if _, wait := w.next(now); wait != want {
			t.Fatalf("undone: wait %v, want %v", wait, want)
		}
		now, want = now.Add(want), min(2*want, lastPause)
	}
	w.ask([]balance.Assignment{one(2)})
	if _, wait := w.next(now); wait != 0 {
		t.Errorf("another address after the pause: wait %v", wait)
	}
	w.ask([]balance.Assignment{one(2)})
	if _, wait := w.next(now); wait != firstPause {
		t.Errorf("after another address: wait %v, want %v", wait, firstPause)
	}
	w.ask(nil)
	if _, wait := w.next(now.Add(time.Hour)); wait == 0 {
		t.Error("what is not asked for any more is written")
	}
	if len(w.past) > 0 {
		t.Errorf("what lasted is remembered: %v", w.past)
	}
}

// hanging is an API server that takes its time.
type hanging struct {
	wrote chan string
	live  atomic.Bool
}

func (h *hanging) PublishBalancer(ctx context.Context, svc model.Name, _ string, _ []netip.Addr) error {
	h.wrote <- svc.Name
	<-ctx.Done()
	return ctx.Err()
}

func (h *hanging) Live() bool { return h.live.Load() }

// Nothing is written because of a State of an earlier run, and nothing waits for an
// API server.
func TestWritesBeside(t *testing.T) {
	t.Parallel()
	state, _, served := balanced()
	pools, err := balance.ParsePools([]string{"203.0.113.0/28"})
	if err != nil {
		t.Fatal(err)
	}
	h := &hanging{wrote: make(chan string, 100)}
	b := New("n1", pools, h, func() {}, slog.New(slog.DiscardHandler))
	applied := make(recorder)
	b.announce = applied
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	self := []netip.Prefix{netip.MustParsePrefix("127.61.7.2/32")} // nobody else's on this machine
	deadline := time.After(patience)
	answers := func() {
		t.Helper()
		for n := 0; n == 0; {
			select {
			case got := <-applied:
				n = len(got)
			case <-deadline:
				t.Fatal("nothing is answered for")
			}
		}
	}
	b.Put(state, false, self, nil, served)
	answers()
	if len(h.wrote) > 0 {
		t.Errorf("%s was written because of an old State", <-h.wrote)
	}
	b.Put(state, true, self, nil, served)
	for written := false; !written; {
		select {
		case name := <-h.wrote:
			if written = true; name != "new" {
				t.Errorf("%s was written, want new", name)
			}
		case <-applied:
		case <-deadline:
			t.Fatal("nothing is written")
		}
	}
	b.Put(state, true, self, nil, served)
	answers() // though the write hangs
	cancel()
	for {
		select {
		case <-applied:
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}
