package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
)

// transfer sends bytes through an echo server and compares what comes back.
func (c *conversation) transfer(n int) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	data := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(c.r, got); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return errors.New("other bytes came back")
	}
	return <-sent
}

// Without any offload everything works, for devices that were made with them, too,
// and a test at the start says whether they are needed.
func TestWithoutOffloads(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 2, Families: DualStack}, echoYAML("echo", "node1"), podYAML("near", "node1", "sleep", "600"), podYAML("far", "node2", "sleep", "600"))
	read := func(node string) status.Status {
		t.Helper()
		var s status.Status
		eventually(t, 20*time.Second, func() (err error) {
			s, err = status.Read(t.Context(), l.stateDir(node))
			return err
		})
		return s
	}
	if o := read("node1").TUNOffload; o.Why != "tested" || !o.TSO || !o.Checksum {
		t.Errorf("offloads at the start: %s", o)
	}
	addrs := append(l.podNow(t, "echo").Addresses, l.serviceNow(t, "echo").ClusterIPs...)
	const size = 1 << 20
	all := func() {
		t.Helper()
		for _, from := range []string{"pod.default.near", "node1", "pod.default.far", "node2"} {
			for _, a := range addrs {
				c, err := l.dialFrom(t, from, netip.AddrPortFrom(a, 7))
				if err == nil {
					err = errors.Join(c.transfer(size), c.Close())
				}
				if err != nil {
					t.Errorf("%s to %s: %v", from, a, err)
				}
			}
			for _, a := range l.plan.outside {
				if from == "node1" || from == "node2" {
					continue
				}
				c, err := l.dialFrom(t, from, netip.AddrPortFrom(a, 7))
				if err == nil {
					err = errors.Join(c.transfer(size), c.Close())
				}
				if err != nil {
					t.Errorf("%s to the outside, %s: %v", from, a, err)
				}
			}
		}
	}
	// mean is the mean length of packets that node1 carries for something.
	mean := func(do func()) uint64 {
		before := read("node1")
		do()
		after := read("node1")
		return (after.Bytes - before.Bytes) / max(after.Packets-before.Packets, 1)
	}
	if n := mean(all); n < 2000 {
		t.Errorf("packets of %d bytes with offloads", n)
	}
	for _, node := range l.NodeNames() {
		if err := l.startAgent(node, programName, "--tun-offload=off"); err != nil { // it takes over
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, func() error {
			if o := read(node).TUNOffload; o.Why != "switched off" || o.Checksum || o.TSO || o.USO {
				return fmt.Errorf("offloads of %s: %s", node, o)
			}
			return nil
		})
	}
	apply(t, l, podYAML("new", "node1", "sleep", "600"))
	if n := mean(all); n > 1420 {
		t.Errorf("packets of %d bytes without offloads", n)
	}
	c, err := l.dialFrom(t, "pod.default.new", netip.AddrPortFrom(addrs[0], 7))
	if err == nil {
		err = c.transfer(size)
	}
	if err != nil {
		t.Errorf("from a pod that was made without offloads: %v", err)
	}
	l.restartAgent(t, "node1")
	eventually(t, 20*time.Second, func() error {
		if o := read("node1").TUNOffload; o.Why != "tested" {
			return fmt.Errorf("offloads after another agent took over: %s", o)
		}
		return nil
	})
	if err == nil {
		err = c.transfer(size)
	}
	if err != nil {
		t.Errorf("with offloads again: %v", err)
	}
}
