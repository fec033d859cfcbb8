package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// pod returns a pod of the lab as it is now.
func (l *Lab) podNow(t *testing.T, name string) *cluster.Pod {
	t.Helper()
	p, err := l.findPod(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *Lab) serviceNow(t *testing.T, name string) *cluster.Service {
	t.Helper()
	have, err := l.read()
	if err != nil {
		t.Fatal(err)
	}
	s := have.service(model.Name{Namespace: "default", Name: name})
	if s == nil {
		t.Fatalf("no service %s", name)
	}
	return s
}

// conversation is a TCP connection to an echo server that stays open.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

// dialFrom opens a connection inside a pod's or node's namespace.
func (l *Lab) dialFrom(t *testing.T, part string, to netip.AddrPort) (*conversation, error) {
	t.Helper()
	ns, err := l.namespace(part)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c := &conversation{}
	err = ns.Do(func() error { // one address: the socket is made in this thread
		var err error
		c.Conn, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	c.r = bufio.NewReader(c)
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.r.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("introduction: %w", err)
	}
	return c, nil
}

// say sends a text and waits for its echo.
func (c *conversation) say(text string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c.r, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("said %q, heard %q", text, got)
	}
	return nil
}

// The agent is the router of its node: when it is killed, its pods wait, and
// when it is back, everything goes on where it was.
func TestRestartKeepsConnectionsAndPods(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Families: DualStack}, podYAML("client", "node1", "sleep", "600"), echoYAML("server", "node2"), echoYAML("near", "node1"))
	open := map[string]*conversation{}
	dial := func(name string, to netip.Addr) {
		t.Helper()
		eventually(t, 5*time.Second, func() error { // endpoints take their way to node1
			c, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(to, 7))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			open[name] = c
			return nil
		})
	}
	for _, target := range []string{"server", "near"} {
		for _, a := range l.podNow(t, target).Addresses {
			dial(fmt.Sprintf("pod %s at %s", target, a), a)
		}
		for _, a := range l.serviceNow(t, target).ClusterIPs {
			dial(fmt.Sprintf("service %s at %s", target, a), a)
		}
	}
	describe := func() kernel.Link {
		t.Helper()
		ns, err := l.namespace("pod.default.client")
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		f, err := kernel.Describe(ns, podInterface)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	before := describe()
	for round, nodes := range [][]string{{"node1"}, {"node2"}, {"node1", "node2"}} {
		for _, node := range nodes {
			if err := l.KillAgent(node); err != nil {
				t.Fatal(err)
			}
		}
		if got := describe(); got.Index != before.Index || !slices.Equal(got.Addresses, before.Addresses) {
			t.Errorf("while the agent is away the pod has %+v, had %+v", got, before)
		}
		for _, node := range nodes {
			l.restartAgent(t, node)
		}
		start := time.Now()
		for name, c := range open {
			for i := range 3 {
				if err := c.say(fmt.Sprintf("round %d, %d: %s", round, i, name)); err != nil {
					t.Errorf("after %v was killed: %s: %v", nodes, name, err)
					break
				}
			}
		}
		t.Logf("%d connections spoke %s after %v was back", len(open), time.Since(start), nodes)
	}
	after := describe()
	if after.Index != before.Index || !slices.Equal(after.Addresses, before.Addresses) || len(after.Routes) != len(before.Routes) {
		t.Errorf("the pod has %+v, had %+v", after, before)
	}
	apply(t, l, podYAML("late", "node1", "sleep", "600"))
	for _, a := range l.serviceNow(t, "server").ClusterIPs {
		c, err := l.dialFrom(t, "pod.default.late", netip.AddrPortFrom(a, 7))
		if err == nil {
			err = c.say("hello")
		}
		if err != nil {
			t.Errorf("a pod that came after the restart: %v", err)
		}
	}
	addrs := map[netip.Addr]string{}
	for _, p := range []string{"client", "near", "late", "server"} {
		for _, a := range l.podNow(t, p).Addresses {
			if other := addrs[a]; other != "" {
				t.Errorf("%s and %s have %s", p, other, a)
			}
			addrs[a] = p
		}
	}
}

// agents returns the processes of a node's agents.
func (l *Lab) agents(node string) []int {
	var out []int
	for _, pid := range processesIn(l.netnsPath(node)) {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(cmdline), "netctl\x00agent\x00") {
			out = append(out, pid)
		}
	}
	return out
}

// said counts the lines of an agent's log with a message.
func (l *Lab) said(t *testing.T, node, message string) int {
	t.Helper()
	text, err := os.ReadFile(l.path("nodes", node, "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), message)
}

// During an upgrade a second agent starts beside the first: it takes the node
// over, the first stays in reserve, and whichever of them ends, and how, one
// serves. Pods keep their connections.
func TestSecondAgentTakesOver(t *testing.T) {
	t.Parallel()
	const serves, gaveWay, again = `msg="agent serves"`, `msg="gave way`, `msg="no other agent serves`
	l := up(t, Config{Nodes: 2, Families: DualStack}, podYAML("client", "node1", "sleep", "600"), echoYAML("near", "node1"), echoYAML("far", "node2"))
	var open []*conversation
	for _, server := range []string{"near", "far"} {
		for _, a := range l.podNow(t, server).Addresses {
			eventually(t, 5*time.Second, func() error {
				c, err := l.dialFrom(t, "pod.default.client", netip.AddrPortFrom(a, 7))
				if err == nil {
					open = append(open, c)
				}
				return err
			})
		}
	}
	pods := 0
	talk := func(when string) {
		t.Helper()
		for i, c := range open {
			if err := c.say(fmt.Sprintf("%s, %d", when, i)); err != nil {
				t.Errorf("%s: connection %d: %v", when, i, err)
			}
		}
		pods++
		name := fmt.Sprintf("new%d", pods)
		apply(t, l, podYAML(name, "node1", "sleep", "600"))
		if c, err := l.dialFrom(t, "pod.default."+name, netip.AddrPortFrom(l.podNow(t, "far").Addresses[0], 7)); err != nil {
			t.Errorf("%s: a new pod: %v", when, err)
		} else if err := c.say("new"); err != nil {
			t.Errorf("%s: a new pod: %v", when, err)
		}
	}
	waitFor := func(message string, count int) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if n := l.said(t, "node1", message); n != count {
				return fmt.Errorf("%q was said %d times, not %d", message, n, count)
			}
			return nil
		})
	}
	end := func(pid int, how syscall.Signal) {
		t.Helper()
		if holder := parentOf(pid); how == syscall.SIGKILL && isNetctl(holder, "hold") { // or it would start another one
			if err := kill(holder); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(pid, how); err != nil {
			t.Fatal(err)
		}
		eventually(t, 15*time.Second, func() error {
			if now := l.agents("node1"); slices.Contains(now, pid) {
				return fmt.Errorf("process %d is still there: %v", pid, now)
			}
			return nil
		})
	}
	start := func() (first, second int) { // the one that serves, and its successor
		t.Helper()
		before, n := l.agents("node1"), l.said(t, "node1", serves)
		if len(before) != 1 {
			t.Fatalf("%v serve", before)
		}
		if err := l.StartAgent("node1"); err != nil {
			t.Fatal(err)
		}
		waitFor(serves, n+1)
		for _, pid := range l.agents("node1") {
			if pid != before[0] {
				second = pid
			}
		}
		return before[0], second
	}

	first, _ := start()
	waitFor(gaveWay, 1)
	talk("beside a retired one")
	end(first, syscall.SIGTERM)
	talk("after an upgrade")

	first, second := start()
	waitFor(gaveWay, 2)
	end(first, syscall.SIGKILL)
	talk("after the retired one was killed")
	if now := l.agents("node1"); !slices.Equal(now, []int{second}) {
		t.Errorf("agents %v, want %d", now, second)
	}

	// Last, for the one that serves then gives way to no other for a minute: its
	// successor has died young.
	_, second = start()
	waitFor(gaveWay, 3)
	n := l.said(t, "node1", serves)
	end(second, syscall.SIGKILL)
	waitFor(again, 1)
	waitFor(serves, n+1)
	talk("after the successor was killed")
}

// A pod that is deleted takes its connections along: its peers are told.
func TestDeletedPodLeavesEndpointsAndEndsItsConnections(t *testing.T) {
	t.Parallel()
	l := up(t, Config{}, podYAML("client", "node1", "sleep", "600"), echoYAML("server", "node2"))
	svc := netip.AddrPortFrom(l.serviceNow(t, "server").ClusterIPs[0], 7)
	var c *conversation
	eventually(t, 5*time.Second, func() (err error) { // endpoints take their way to node1
		c, err = l.dialFrom(t, "pod.default.client", svc)
		return err
	})
	if err := l.DeleteObject(t.Context(), "Pod", model.Name{Namespace: "default", Name: "server"}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err := c.say("anybody?")
	if err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("the connection ended after %s with %v", time.Since(start), err)
	}
	t.Logf("ended after %s: %v", time.Since(start), err)
	status, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range status.Services {
		if s.Name == "default/server" && len(s.Endpoints) > 0 {
			t.Errorf("endpoints %v", s.Endpoints)
		}
	}
	eventually(t, 5*time.Second, func() error {
		if _, err := l.dialFrom(t, "pod.default.client", svc); !ErrRefused(err) {
			return fmt.Errorf("a service without endpoints: %w", errors.Join(err, errors.New("want a refusal")))
		}
		return nil
	})
}

// A node that is given up keeps nothing of netctl: no interface, route or file.
func TestCleanupLeavesNothing(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack}, podYAML("a", "node1", "sleep", "600"))
	cni := l.path("nodes", "node1", "cni")
	cleanup := func() (string, error) {
		return l.withOutput("node1", "netctl", "cleanup", "--state-dir="+l.stateDir("node1"), "--data-dir="+l.stateDir("node1"), "--cni-bin-dir="+cni, "--cni-conf-dir="+cni)
	}
	if out, err := cleanup(); err == nil || !strings.Contains(out, "an agent runs on this node") {
		t.Errorf("while an agent runs: %v: %s", err, out)
	}
	ns, err := l.namespace("pod.default.a")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	node, err := l.namespace("node1")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if _, err := kernel.Describe(ns, podInterface); err != nil {
		t.Errorf("the pod suffered: %v", err)
	}
	if err := l.KillAgent("node1"); err != nil {
		t.Fatal(err)
	}
	out, err := cleanup()
	for _, want := range []string{"eth0 of pod default/a", "interface netctl0", l.stateDir("node1")} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %q is not in: %s", err, want, out)
		}
	}
	for ns, name := range map[*kernel.Namespace]string{ns: podInterface, node: "netctl0"} {
		if _, err := kernel.Describe(ns, name); !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	links, err := kernel.Interfaces(node)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		link, err := kernel.Describe(node, link.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range link.Routes {
			if r.Own {
				t.Errorf("route left: %v", r)
			}
		}
	}
	if _, err := os.Stat(l.stateDir("node1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory: %v", err)
	}
	if out, err := cleanup(); err != nil || out != "" {
		t.Errorf("again: %v: %s", err, out)
	}
}
