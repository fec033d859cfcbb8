package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
)

// stream sends a datagram every millisecond to an echo server and notes what comes
// back.
type stream struct {
	conn net.Conn
	stop chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	sent  []time.Time
	heard map[uint32]time.Time
}

func (l *Lab) streamFrom(t *testing.T, part string, to netip.AddrPort) *stream {
	t.Helper()
	ns, err := l.namespace(part)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s := &stream{stop: make(chan struct{}), heard: map[uint32]time.Time{}}
	if err := ns.Do(func() (err error) {
		s.conn, err = net.Dial("udp", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var buf [4]byte
		for i := uint32(0); ; i++ {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint32(buf[:], i)
			s.mu.Lock()
			s.sent = append(s.sent, time.Now())
			s.mu.Unlock()
			_, _ = s.conn.Write(buf[:]) // what is lost is counted
		}
	})
	s.wg.Go(func() {
		buf := make([]byte, 1000)
		for {
			n, err := s.conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n < 4 {
				continue // ICMP errors are losses
			}
			s.mu.Lock()
			s.heard[binary.BigEndian.Uint32(buf[n-4:])] = time.Now()
			s.mu.Unlock()
		}
	})
	return s
}

// end returns how many datagrams were sent and did not come back, and the longest
// time in which nothing came.
func (s *stream) end() (sent, lost int, gap time.Duration) {
	close(s.stop)
	time.Sleep(500 * time.Millisecond) // what is on its way
	_ = s.conn.Close()
	s.wg.Wait()
	var last time.Time
	for i := range s.sent {
		at, ok := s.heard[uint32(i)]
		if !ok {
			lost++
			continue
		}
		if !last.IsZero() {
			gap = max(gap, at.Sub(last))
		}
		if at.After(last) {
			last = at
		}
	}
	return len(s.sent), lost, gap
}

// load is what goes on over a restart: datagrams and connections, to a pod of the
// same node and of another, to their addresses and to their Services'.
type load struct {
	streams map[string]*stream
	open    map[string]*conversation
}

func (l *Lab) load(t *testing.T) *load {
	t.Helper()
	out := &load{map[string]*stream{}, map[string]*conversation{}}
	for _, server := range []string{"near", "far"} {
		for what, a := range map[string]netip.Addr{"pod": l.podNow(t, server).Addresses[0], "service": l.serviceNow(t, server).ClusterIPs[0]} {
			name, to := what+" "+server, netip.AddrPortFrom(a, 7)
			eventually(t, 5*time.Second, func() error {
				c, err := l.dialFrom(t, "pod.default.client", to)
				if err == nil {
					out.open[name] = c
				}
				return err
			})
			out.streams[name] = l.streamFrom(t, "pod.default.client", to)
		}
	}
	time.Sleep(100 * time.Millisecond)
	return out
}

// talk fails the test when a connection does not go on.
func (d *load) talk(t *testing.T, when string) {
	t.Helper()
	for name, c := range d.open {
		if err := c.say(when + " " + name); err != nil {
			t.Errorf("%s: %s: %v", when, name, err)
		}
	}
}

func (d *load) end(t *testing.T) (lost int) {
	t.Helper()
	for name, s := range d.streams {
		n, missing, gap := s.end()
		t.Logf("%s: %d of %d datagrams lost, longest silence %s", name, missing, n, gap.Round(100*time.Microsecond))
		if missing == n {
			t.Errorf("%s: nothing came back", name)
		}
		lost += missing
	}
	return lost
}

func echoesUp(t *testing.T) *Lab {
	t.Helper()
	return up(t, Config{Nodes: 2, Families: IPv4}, podYAML("client", "node1", "sleep", "600"), echoYAML("near", "node1"), echoYAML("far", "node2"))
}

// process returns what a node's agent says of its process.
func (l *Lab) process(t *testing.T, node string) status.Process {
	t.Helper()
	var p status.Process
	eventually(t, 10*time.Second, func() error {
		s, err := status.Read(t.Context(), l.stateDir(node))
		p = s.Process
		return err
	})
	return p
}

// A worker that is killed is replaced at once, from what its holder kept: nothing
// that is forwarded ends, no device loses its carrier, and nothing adds up.
func TestCrashIsSurvived(t *testing.T) {
	t.Parallel()
	l := echoesUp(t)
	d := l.load(t)
	var first, last status.Process
	const crashes = 5 // more of them in a row wait before each start
	for i := range crashes {
		n := l.said(t, "node1", `msg="agent serves"`)
		if err := l.CrashAgent("node1"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, func() error {
			if now := l.said(t, "node1", `msg="agent serves"`); now != n+1 {
				return fmt.Errorf("served %d times, not %d", now, n+1)
			}
			return nil
		})
		d.talk(t, fmt.Sprintf("crash %d", i))
		time.Sleep(1100 * time.Millisecond) // those that served are replaced at once
		if i == 1 {
			first = l.process(t, "node1")
		}
	}
	last = l.process(t, "node1")
	if last.Files > first.Files+5 || last.Goroutines > first.Goroutines+20 {
		t.Errorf("after crashes the agent has %+v, had %+v", last, first)
	}
	d.end(t)
	apply(t, l, podYAML("late", "node1", "sleep", "600"))
	if err := l.DeleteObject(t.Context(), "Pod", l.podNow(t, "near").Name); err != nil {
		t.Errorf("a pod is deleted after crashes: %v", err)
	}
}

// handOver starts a second agent on a node and ends the first when that serves.
func (l *Lab) handOver(t *testing.T, node string) {
	t.Helper()
	before, n := l.agents(node), l.said(t, node, `msg="agent serves"`)
	if err := l.StartAgent(node); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if now := l.said(t, node, `msg="agent serves"`); now != n+1 {
			return fmt.Errorf("served %d times, not %d", now, n+1)
		}
		return nil
	})
	for _, pid := range before {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	eventually(t, 20*time.Second, func() error {
		if now := l.agents(node); len(now) != 1 {
			return fmt.Errorf("agents %v", now)
		}
		return nil
	})
}

// An upgrade costs no packet of what is forwarded, many times in a row.
func TestHandoverLosesNothing(t *testing.T) {
	t.Parallel()
	l := echoesUp(t)
	d := l.load(t)
	l.handOver(t, "node1")
	before := l.process(t, "node1")
	for i := range 4 {
		l.handOver(t, "node1")
		d.talk(t, fmt.Sprintf("handover %d", i))
	}
	after := l.process(t, "node1")
	if after.Files > before.Files+5 || after.Goroutines > before.Goroutines+20 {
		t.Errorf("after handovers the agent has %+v, had %+v", after, before)
	}
	if lost := d.end(t); lost > 0 {
		t.Logf("%d datagrams lost", lost)
	}
	if n := l.said(t, "node1", "level=WARN msg=\"pod's interface is opened anew"); n > 0 {
		t.Errorf("%d devices were opened anew", n)
	}
}

// A successor that cannot serve leaves the node to the one that does.
func TestFailingSuccessor(t *testing.T) {
	t.Parallel()
	l := echoesUp(t)
	d := l.load(t)
	pid, _ := l.AgentPID("node1")
	// Everything is taken from the one that serves before the key is found unreadable.
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, "wireguard.key"), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.startAgent("node1", programName, "--data-dir="+bad); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if l.said(t, "node1", "this agent serves on") == 0 {
			return errors.New("nobody has failed")
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		if l.said(t, "node1", `msg="agent serves"`) < 2 {
			return errors.New("it does not serve again")
		}
		return nil
	})
	if p := l.process(t, "node1"); p.PID != pid {
		t.Errorf("process %d serves, want %d", p.PID, pid)
	}
	d.talk(t, "after a failed successor")
	d.end(t)
	apply(t, l, podYAML("late", "node1", "sleep", "600"))
}
