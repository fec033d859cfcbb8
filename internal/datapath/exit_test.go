package datapath_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/vnet"
)

func TestExitsSayWhyTheyDoNotTakeAPacket(t *testing.T) {
	t.Parallel()
	for reason, err := range map[string]error{
		"port_full": datapath.ErrFull, "no_peer": datapath.ErrNoPeer,
		"port_refused": datapath.ErrRefused, "fragment": datapath.ErrFragment,
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			c := router(t, vnet.Config{})
			c.Port("a2").Fail(fmt.Errorf("exit: %w", err))
			c.Play(vnet.V4, `
				a -> udp a:1000 > a2:53
				n1 drops `+reason)
		})
	}
}

// A question in pieces is the asker's affair: the name server's queue is not
// full.
func TestQuestionInPieces(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	for _, f := range vnet.Families() {
		before := c.Drops()["n1"]["fragment"]
		c.Port("a").Send(vnet.Split(c.Build(f, "udp a:1000 > kube-dns:53 len=64"), 32, 9)...)
		if n := c.Drops()["n1"]["fragment"] - before; n != 3 {
			t.Errorf("%v: %d pieces dropped as fragments, want 3; drops: %v", f, n, c.Drops())
		}
	}
}

func TestFirstPanicIsKept(t *testing.T) {
	t.Parallel()
	c := router(t, vnet.Config{})
	r := c.Node("n1").Router
	if p := r.Panic(); p != nil {
		t.Fatalf("a panic before any: %v", p.Value)
	}
	for _, text := range []string{"first bug", "second bug"} {
		c.Port("a2").Hook(func() { panic(text) })
		c.Port("a").Send(c.Build(vnet.V4, "udp a:1000 > a2:53"))
	}
	p := r.Panic()
	if p == nil || p.Value != "first bug" || !strings.Contains(p.Stack, "TestFirstPanicIsKept") {
		t.Errorf("kept %+v, want the first bug with its stack", p)
	}
}
