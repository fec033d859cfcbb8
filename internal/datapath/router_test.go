package datapath_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// router is a cluster without tunnels: pods a and a2 on n1, b on n2, services
// web (b), local (a2), both (a2 and b) and none.
func router(tb testing.TB, cfg vnet.Config) *vnet.Cluster {
	tb.Helper()
	cfg.Bare = true
	c := vnet.New(tb, cfg)
	c.Batch(func() {
		c.AddPod("a", "n1")
		c.AddPod("a2", "n1")
		c.AddPod("b", "n2")
		c.AddService("web", "b")
		c.AddService("local", "a2")
		c.AddService("both", "a2", "b")
		c.AddService("none")
	})
	return c
}

func TestUnpublishedRouterDropsEverything(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	flows, err := flow.Open(flow.Config{Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	r := datapath.New(datapath.Config{Flows: flows})
	in := r.NewInput(agent.FirstPodPort)
	in.Deliver(c.Build(vnet.V4, "udp a:1000 > a2:53"), []byte{}, nil)
	sum := r.Counters()
	if sum.Packets != 0 || sum.Drops[datapath.DropSpoofedSource] != 1 || sum.Drops[datapath.DropMalformed] != 2 {
		t.Errorf("it counts %+v", sum.ByReason())
	}
	in.Close()
	if after := r.Counters(); after != sum {
		t.Errorf("counts of a closed input are lost: %+v, want %+v", after, sum)
	}
}

func TestPanicCostsOnePacket(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	c.Port("a2").Hook(func() { panic("a bug in a port") })
	c.Play(vnet.V4, `
		a -> udp a:1000 > a2:53
		a -> udp a:1001 > a2:53
		n1 drops panic 2`)
	c.Port("a2").Hook(nil)
	c.Play(vnet.V4, `
		a -> udp a:1000 > a2:53
		a2 <- udp a:1000 > a2:53`)
	c.Publish() // does not wait for a batch that panicked
}

func TestPortsThatDoNotTakePackets(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	c.Port("a2").Fail(datapath.ErrFull)
	c.Play(vnet.V6, `
		a -> udp a:1000 > a2:53
		n1 drops port_full`)
	c.Port("a2").Fail(errors.New("file descriptor in bad state"))
	c.Play(vnet.V6, `
		a -> udp a:1000 > a2:53
		n1 drops port_gone`)
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	buf := c.Build(vnet.V4, "udp a:1000 > none:80")
	burst := func() int {
		in := c.Node("n1").Router.NewInput(c.Port("a").ID)
		defer in.Close()
		for range 3000 {
			in.Deliver(append([]byte(nil), buf...))
		}
		return len(c.Port("a").Take())
	}
	if n := burst(); n != 200 {
		t.Errorf("%d answers in one second, want 200", n)
	}
	c.Advance(1)
	if n := burst(); n != 200 {
		t.Errorf("%d answers in the next second, want 200", n)
	}
}

func TestPublishWaitsForRunningBatches(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	r := c.Node("n1").Router
	entered, leave := make(chan struct{}), make(chan struct{})
	c.Port("a2").Hook(func() { close(entered); <-leave })
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Port("a").Send(c.Build(vnet.V4, "udp a:1000 > a2:53"))
	}()
	<-entered
	r.Publish(r.Tables()) // the same tables: nothing to wait for
	published := make(chan struct{})
	go func() {
		defer close(published)
		next := *r.Tables()
		r.Publish(&next)
	}()
	select {
	case <-published:
		t.Error("Publish returned while a batch worked with the old tables")
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	<-published
	<-done
}

// closable is a port that must not be written to once it is closed.
type closable struct {
	closed, wrong atomic.Bool
}

func (p *closable) Write([]byte) error {
	if p.closed.Load() {
		p.wrong.Store(true)
	}
	return nil
}

// A port that is no longer in the tables may be closed when Publish returns.
func TestPublishRace(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	n := c.Node("n1")
	in := c.Input(n)
	at := -1
	for i := range in.Ports {
		if in.Ports[i].Name == "default/a2" {
			at = i
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			way := n.Router.NewInput(c.Port("a").ID)
			defer way.Close()
			buf := c.Build(vnet.V4, "udp a:1000 > a2:53")
			for {
				select {
				case <-stop:
					return
				default:
					way.Deliver(append([]byte(nil), buf...), append([]byte(nil), buf...))
				}
			}
		})
	}
	old := &closable{}
	for i := range 200 {
		next := &closable{}
		in.Ports[at].Port = next
		in.Ports[at].Incarnation = string(rune('a' + i%2))
		n.Router.Publish(agent.Compile(in).Tables)
		old.closed.Store(true)
		if old.wrong.Load() {
			t.Fatal("a port was written to after Publish took it away")
		}
		old = next
	}
	close(stop)
	wg.Wait()
	if sum := n.Router.Counters(); sum.Packets == 0 || sum.Drops[datapath.DropPanic] != 0 {
		t.Errorf("carried %d packets, dropped %v", sum.Packets, sum.ByReason())
	}
}

// Two workers that meet the first packets of one connection agree on a backend
// and on an exit.
func TestConcurrentOpensAgree(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	n := c.Node("n1")
	const workers, rounds = 4, 200
	for port := range uint16(rounds) {
		buf := c.BuildTuple(c.Tuple(vnet.V6, packet.ProtoUDP, "a", 2000+port, "both", vnet.ServicePort), "data=x")
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() { c.Port("a").Send(buf) })
		}
		wg.Wait()
		local, remote := c.Port("a2").Take(), c.Port("overlay.n1").Take()
		if len(local)+len(remote) != workers || len(local) > 0 && len(remote) > 0 {
			t.Fatalf("%d packets went to a2 and %d to b", len(local), len(remote))
		}
		for _, p := range local {
			if p.Tuple.Dst.Netip() != c.Addr(vnet.V6, "a2") {
				t.Fatalf("a2 got %s", c.Text(p))
			}
		}
		for _, p := range remote {
			if p.Tuple.Dst.Netip() != c.Addr(vnet.V6, "b") {
				t.Fatalf("the overlay got %s", c.Text(p))
			}
		}
	}
	if got := n.Flows.Len(); got != rounds {
		t.Errorf("%d flows, want %d", got, rounds)
	}
}
