package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/agent/status"
)

// egress returns what a node's agent says of pods' way out.
func (l *Lab) egress(t *testing.T, node string) string {
	t.Helper()
	var way string
	eventually(t, 10*time.Second, func() error {
		s, err := status.Read(t.Context(), l.stateDir(node))
		way = s.Egress
		return err
	})
	return way
}

// setSysctl sets something in a node's namespace.
func (l *Lab) setSysctl(t *testing.T, node, key, value string) {
	t.Helper()
	ns, err := l.namespace(node)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) }); err != nil {
		t.Fatal(err)
	}
}

// With packets to the outside the agent has nothing of a connection: it may die, and
// be followed by another one, in the middle of a transfer.
func TestPacketsToTheOutsideSurviveTheAgent(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack, Egress: settings.EgressPackets}, podYAML("client", "node1", "sleep", "600"))
	if way := l.egress(t, "node1"); way != "packets" {
		t.Fatalf("pods reach the outside by %s", way)
	}
	var open []*conversation
	for _, a := range l.plan.outside {
		c, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(a, 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(a, 9)); !ErrRefused(err) {
			t.Errorf("a closed port of %s: %v", a, err)
		}
		open = append(open, c)
	}
	datagrams := l.streamFrom(t, "pod.default.client", netip.AddrPortFrom(l.plan.outside[0], 7))
	transfer := make(chan error, 1)
	big, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(l.plan.outside[0], 7))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { transfer <- big.stream(done) }()
	next := func(what string, act func() error) {
		t.Helper()
		time.Sleep(300 * time.Millisecond) // in the middle of it
		n := l.said(t, "node1", `msg="agent serves"`)
		if err := act(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, func() error {
			if now := l.said(t, "node1", `msg="agent serves"`); now != n+1 {
				return fmt.Errorf("%s: served %d times, not %d", what, now, n+1)
			}
			return nil
		})
		for i, c := range open {
			if err := c.say(what); err != nil {
				t.Errorf("%s: connection %d: %v", what, i, err)
			}
		}
		time.Sleep(1100 * time.Millisecond) // those that served are replaced at once
	}
	next("crash", func() error { return l.CrashAgent("node1") })
	next("another crash", func() error { return l.CrashAgent("node1") })
	next("handover", func() error { return l.StartAgent("node1") })
	close(done)
	if err := <-transfer; err != nil {
		t.Errorf("a transfer in the meantime: %v", err)
	}
	if sent, lost, gap := datagrams.end(); lost > sent/4 {
		t.Errorf("%d of %d datagrams lost, longest silence %s", lost, sent, gap)
	} else {
		t.Logf("%d of %d datagrams lost, longest silence %s", lost, sent, gap)
	}
	if n := l.said(t, "node1", "a socket for packets to the outside was not taken over"); n > 0 {
		t.Errorf("%d sockets were not taken over", n)
	}
}

// stream sends to the echo server and checks what comes back until done is closed,
// and at the end that all of it came.
func (c *conversation) stream(done <-chan struct{}) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	sent := make(chan int, 1)
	var sendErr error
	go func() {
		n := 0
		defer func() { sent <- n }()
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, sendErr = c.Write(piece); sendErr != nil {
				return
			}
			n++
		}
	}()
	got, want := make([]byte, len(piece)), -1
	for n := 0; n != want; {
		if want < 0 {
			select {
			case want = <-sent:
				if sendErr != nil {
					return fmt.Errorf("after %d pieces: %w", want, sendErr)
				}
				continue
			default:
			}
		}
		if _, err := io.ReadFull(c.r, got); err != nil {
			return fmt.Errorf("after %d pieces: %w", n, err)
		}
		if !bytes.Equal(got, piece) {
			return fmt.Errorf("piece %d is another one", n)
		}
		n++
	}
	if want == 0 {
		return errors.New("nothing was sent")
	}
	return nil
}

// A node that does not forward has sockets, which the log gives the reason for, and
// an agent that may only have packets ends with the same words.
func TestPacketsNeedForwarding(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: IPv4}, podYAML("client", "node1", "sleep", "600"))
	l.setSysctl(t, "node1", "net/ipv4/ip_forward", "0")
	const why = "net/ipv4/ip_forward is 0"
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	if err := l.startAgent("node1", programName, "--egress=packets"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if l.said(t, "node1", why) == 0 {
			return errors.New("nothing is said of " + why)
		}
		return nil
	})
	if pid, ok := l.AgentPID("node1"); ok { // the holder goes on trying
		if err := kill(parentOf(pid)); err != nil {
			t.Error(err)
		}
	}
	l.signal([]string{l.netnsName("node1")}, 9)
	l.cfg.Egress = settings.EgressAuto
	l.restartAgent(t, "node1")
	if way := l.egress(t, "node1"); way != "sockets" || l.said(t, "node1", "end in sockets, for the node cannot forward their packets") != 1 {
		t.Errorf("pods reach the outside by %s", way)
	}
	c, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(l.plan.outside[0], 7))
	if err == nil {
		err = errors.Join(c.say("hello"), c.Close()) // or the agent would stay for it
	}
	if err != nil {
		t.Errorf("to the outside: %v", err)
	}
	l.setSysctl(t, "node1", "net/ipv4/ip_forward", "1")
	l.setSysctl(t, "node1", "net/ipv6/conf/all/forwarding", "0") // nobody needs it here
	l.handOver(t, "node1")
	if way := l.egress(t, "node1"); way != "packets" {
		t.Errorf("a node that forwards now: pods reach the outside by %s", way)
	}
	c, err = l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(l.plan.outside[0], 7))
	if err == nil {
		err = c.say("hello")
	}
	if err != nil {
		t.Errorf("to the outside by packets: %v", err)
	}
}
