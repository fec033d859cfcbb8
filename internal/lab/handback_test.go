package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// serving waits until agents of a node have begun to serve so many times.
func (l *Lab) serving(t *testing.T, node string, times int) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if now := l.said(t, node, `msg="agent serves"`); now != times {
			return fmt.Errorf("served %d times, not %d", now, times)
		}
		return nil
	})
}

// besides returns the node's agent that is none of those.
func (l *Lab) besides(t *testing.T, node string, others ...int) int {
	t.Helper()
	all := slices.DeleteFunc(l.agents(node), func(pid int) bool { return slices.Contains(others, pid) })
	if len(all) != 1 {
		t.Fatalf("agents %v beside %v", all, others)
	}
	return all[0]
}

// ended tells a process to end and waits until it has.
func (l *Lab) ended(t *testing.T, node string, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if slices.Contains(l.agents(node), pid) {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
}

// A successor that is told to end while its predecessor is in reserve hands the node
// back to that one: nothing is lost, and connections that end in sockets go on for as
// long as either of them is there. So it is when one rollout follows another at once.
func TestSuccessorThatEndsHandsBack(t *testing.T) {
	t.Parallel()
	l := echoesUp(t)
	d := l.load(t)
	outside := netip.AddrPortFrom(l.plan.outside[0], 7)
	dial := func() *conversation {
		t.Helper()
		c, err := l.dialFrom(t, "pod.default.client", outside)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := l.besides(t, "node1")
	for round := range 3 {
		before, n := dial(), l.said(t, "node1", `msg="agent serves"`)
		if err := l.StartAgent("node1"); err != nil {
			t.Fatal(err)
		}
		l.serving(t, "node1", n+1)
		second := l.besides(t, "node1", first)
		during := dial()
		if err := syscall.Kill(second, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		l.serving(t, "node1", n+2)
		if p := l.process(t, "node1"); p.PID != first {
			t.Fatalf("process %d serves, want %d", p.PID, first)
		}
		d.talk(t, fmt.Sprintf("round %d", round))
		for name, c := range map[string]*conversation{"of before": before, "of the one that ends": during} {
			if err := c.say(name); err != nil {
				t.Errorf("round %d: connection to the outside %s: %v", round, name, err)
			}
			if err := c.Close(); err != nil { // nothing keeps the one that ends then
				t.Error(err)
			}
		}
		eventually(t, 20*time.Second, func() error {
			if now := l.agents("node1"); len(now) != 1 {
				return fmt.Errorf("agents %v", now)
			}
			return nil
		})
	}
	l.handOver2(t, "node1", dial())
	if lost := d.end(t); lost > 0 {
		t.Logf("%d datagrams lost", lost)
	}
	if n := l.said(t, "node1", "opened anew"); n > 0 {
		t.Errorf("%d devices were opened anew", n)
	}
}

// handOver2 has two rollouts follow each other at once: the second begins by ending
// the successor of the first.
func (l *Lab) handOver2(t *testing.T, node string, through *conversation) {
	t.Helper()
	first, n := l.besides(t, node), l.said(t, node, `msg="agent serves"`)
	if err := l.StartAgent(node); err != nil {
		t.Fatal(err)
	}
	l.serving(t, node, n+1)
	second := l.besides(t, node, first)
	if err := l.StartAgent(node); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(second, syscall.SIGTERM); err != nil { // what is passed along by it keeps it
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if now := l.process(t, node); now.PID == first || now.PID == second {
			return fmt.Errorf("process %d serves", now.PID)
		}
		return nil
	})
	if err := through.say("through two rollouts"); err != nil {
		t.Error(err)
	}
	if err := through.Close(); err != nil {
		t.Error(err)
	}
	l.ended(t, node, first)
}

// An agent whose holder starts a stand-in hands over to that when it is told to end,
// rather than to leave the node to whoever finds out.
func TestEndingAgentHandsOverToStandIn(t *testing.T) {
	t.Parallel()
	l := echoesUp(t)
	first := l.besides(t, "node1")
	socket := filepath.Join(l.stateDir("node1"), "holders", "pod.sock")
	start := func(args ...string) {
		t.Helper()
		cmd, err := l.hostCommand("node1", args)
		if err == nil {
			err = l.startLogged("node1", cmd, l.path("nodes", "node1", "agent.log"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	agent := l.agentCommand("node1", programName)
	start(append([]string{"netctl", "hold", "--socket=" + socket, "--"}, append(agent, "--stand-in")...)...)
	eventually(t, 10*time.Second, func() error {
		if !exists(socket) {
			return fmt.Errorf("no %s", socket)
		}
		return nil
	})
	serve := func(times int) int {
		t.Helper()
		start(append(agent, "--hold-socket="+socket)...)
		l.serving(t, "node1", times)
		return l.process(t, "node1").PID
	}
	second := serve(2)
	l.ended(t, "node1", first)
	d := l.load(t)
	for round := range 3 {
		l.ended(t, "node1", second)
		d.talk(t, fmt.Sprintf("served by a stand-in, round %d", round))
		if n := l.said(t, "node1", "the agent has died"); n > 0 {
			t.Errorf("round %d: the holder saw a death", round)
		}
		second = serve(4 + 2*round)
		d.talk(t, fmt.Sprintf("round %d", round))
	}
	if lost := d.end(t); lost > 0 {
		t.Logf("%d datagrams lost", lost)
	}
}
