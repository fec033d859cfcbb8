package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// annotatedYAML is podYAML with the annotation that others are set beside.
func annotatedYAML(name, node string) string {
	return strings.Replace(podYAML(name, node, "sleep", "600"), "metadata: {", "metadata: {annotations: {lab: x}, ", 1)
}

// annotate sets an annotation of a running pod, "" takes it away.
func (l *Lab) annotate(t *testing.T, pod, key, value string) {
	t.Helper()
	path := filepath.Join(l.clusterDir(), cluster.FileName("Pod", model.Name{Namespace: "default", Name: pod}))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "    "+key+":") {
			continue
		}
		if out = append(out, line); line == "  annotations:\n" && value != "" {
			out = append(out, fmt.Sprintf("    %s: %q\n", key, value))
		}
	}
	next := l.path("annotated") // outside the directory, on its file system
	if err := errors.Join(os.WriteFile(next, []byte(strings.Join(out, "")), 0o600), os.Rename(next, path)); err != nil {
		t.Fatal(err)
	}
}

// limited waits until a pod's limits are what they should be.
func (l *Lab) limited(t *testing.T, node, pod string, ingress, egress uint64) *status.Limits {
	t.Helper()
	var got *status.Limits
	eventually(t, 30*time.Second, func() error {
		s, err := status.Read(t.Context(), l.stateDir(node))
		if err != nil {
			return err
		}
		got = nil
		for _, p := range s.Ports {
			if p.Name == "default/"+pod {
				got = p.Limits
			}
		}
		if got == nil && ingress == 0 && egress == 0 {
			return nil
		}
		if got == nil || got.IngressBits != ingress || got.EgressBits != egress {
			return fmt.Errorf("limits of %s are %+v", pod, got)
		}
		return nil
	})
	return got
}

// listenIn listens in a part's namespace and hands on who comes.
func (l *Lab) listenIn(t *testing.T, part string, port int) <-chan net.Conn {
	t.Helper()
	ns, err := l.namespace(part)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var listener net.Listener
	if err := ns.Do(func() error {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	came := make(chan net.Conn)
	go func() {
		defer close(came)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			came <- c
		}
	}()
	return came
}

// flood is a TCP connection whose sender never stops.
type flood struct {
	sender, receiver net.Conn
}

func (l *Lab) flood(t *testing.T, from string, to netip.AddrPort, came <-chan net.Conn) *flood {
	t.Helper()
	ns, err := l.namespace(from)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	f := new(flood)
	if err := ns.Do(func() error {
		f.sender, err = net.DialTimeout("tcp", to.String(), 20*time.Second)
		return err
	}); err != nil {
		t.Fatalf("from %s to %s: %v", from, to, err)
	}
	f.receiver = <-came
	if err := f.receiver.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	go func() {
		piece := make([]byte, 64<<10)
		for {
			if _, err := f.sender.Write(piece); err != nil {
				return
			}
		}
	}()
	return f
}

func (f *flood) close() {
	_ = f.sender.Close()
	_ = f.receiver.Close()
}

// take receives n bytes and returns how long that took.
func (f *flood) take(t *testing.T, n int64) time.Duration {
	t.Helper()
	began := time.Now()
	if err := f.receiver.SetReadDeadline(began.Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.CopyN(io.Discard, f.receiver, n); err != nil {
		t.Fatalf("%d of %d bytes came: %v", got, n, err)
	}
	return time.Since(began)
}

// A pod's limits hold in both directions, for every way to it, and follow its
// annotations while a connection goes on.
//
// How close to its limit a connection comes is in the log: a busy machine makes it
// less, and nothing makes it more.
func TestBandwidthFollowsAnnotations(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 2, Families: DualStack},
		annotatedYAML("limited", "node1"), podYAML("near", "node1", "sleep", "600"), podYAML("far", "node2", "sleep", "600"), `
---
apiVersion: v1
kind: Service
metadata: {name: limited}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: limited}
  ports: [{name: tcp, port: 80, targetPort: 9000, protocol: TCP}]
`)
	const limited, near = "pod.default.limited", "pod.default.near"
	in, out := l.listenIn(t, limited, 9000), l.listenIn(t, near, 9000)
	var floods []*flood
	start := func(from string, to netip.AddrPort, came <-chan net.Conn) *flood {
		f := l.flood(t, from, to, came)
		t.Cleanup(f.close)
		floods = append(floods, f)
		return f
	}
	// held checks that a flood takes as long as its bytes need at a rate, but for what
	// was under way already and a burst.
	held := func(what string, f *flood, bits uint64) {
		t.Helper()
		rate := float64(bits) / 8
		f.take(t, 256<<10) // what the kernels between had from before
		n := int64(min(max(rate*2, 512<<10), 64<<20))
		const slack = 192 << 10 // what has come and was not taken, a super-packet, a burst
		took := f.take(t, n).Seconds()
		t.Logf("%s: %.1f %% of %d bit/s", what, float64(n)/took/rate*100, bits)
		if most := rate*took + max(slack, rate/10); float64(n) > most {
			t.Errorf("%s: %d bytes in %.2f s at %d bit/s", what, n, took, bits)
		}
	}
	addr := l.podNow(t, "limited").Addresses
	vip := l.serviceNow(t, "limited").ClusterIPs
	l.annotate(t, "limited", ingressBandwidth, "8M")
	l.limited(t, "node1", "limited", 8e6, 0)
	for family := range addr {
		for _, way := range []struct {
			name, from string
			to         netip.AddrPort
		}{
			{"pod to pod", near, netip.AddrPortFrom(addr[family], 9000)},
			{"host to pod", "node1", netip.AddrPortFrom(addr[family], 9000)},
			{"pod to service", near, netip.AddrPortFrom(vip[family], 80)},
			{"host to service", "node1", netip.AddrPortFrom(vip[family], 80)},
			{"from another node", "pod.default.far", netip.AddrPortFrom(addr[family], 9000)},
		} {
			f := start(way.from, way.to, in)
			held(fmt.Sprintf("%s, %s", way.name, way.to), f, 8e6)
			f.close()
		}
	}
	f := start(near, netip.AddrPortFrom(addr[0], 9000), in)
	back := start(limited, netip.AddrPortFrom(l.podNow(t, "near").Addresses[0], 9000), out)
	l.annotate(t, "limited", ingressBandwidth, "1M")
	l.annotate(t, "limited", egressBandwidth, "10M")
	l.limited(t, "node1", "limited", 1e6, 10e6)
	go func() { _, _ = io.Copy(io.Discard, back.receiver) }()
	held("1M", f, 1e6)
	back.close()
	back = start(limited, netip.AddrPortFrom(l.podNow(t, "near").Addresses[1], 9000), out)
	held("10M out", back, 10e6)
	back.close()
	l.annotate(t, "limited", egressBandwidth, "1M")
	l.limited(t, "node1", "limited", 1e6, 1e6)
	back = start(limited, netip.AddrPortFrom(l.podNow(t, "near").Addresses[1], 9000), out)
	held("1M out", back, 1e6)
	if s := l.limited(t, "node1", "limited", 1e6, 1e6); s.Held == 0 || s.Dropped == 0 || s.Pauses == 0 || s.PausedSeconds <= 0 {
		t.Errorf("what the limits did: %+v", s)
	}
	back.close()
	l.annotate(t, "limited", ingressBandwidth, "1G")
	l.annotate(t, "limited", egressBandwidth, "1G")
	l.limited(t, "node1", "limited", 1e9, 1e9)
	held("1G", f, 1e9) // the same connection, which at 1M would need half an hour
	f.close()
	back = start(limited, netip.AddrPortFrom(l.podNow(t, "near").Addresses[0], 9000), out)
	held("1G out", back, 1e9)

	l.annotate(t, "limited", egressBandwidth, "fast")
	l.annotate(t, "limited", ingressBandwidth, "")
	l.limited(t, "node1", "limited", 0, 0)
	eventually(t, 10*time.Second, func() error {
		s, err := status.Read(t.Context(), l.stateDir("node1"))
		if err != nil {
			return err
		}
		said := strings.Join(s.Problems, "\n")
		if !strings.Contains(said, `pod default/limited has no bandwidth limit: annotation kubernetes.io/egress-bandwidth: "fast"`) {
			return fmt.Errorf("problems: %s", said)
		}
		return nil
	})
	back.take(t, 64<<20)
}

// What the runtime asked for holds without any word of the cluster, and for the next
// agent, too.
func TestBandwidthOfTheRuntime(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: IPv4}, podYAML("near", "node1", "sleep", "600"))
	b := l.box(t, "node1", "limited")
	rt := b.rt()
	rt.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"ingressRate": 4_000_000, "ingressBurst": 1<<32 - 1, "egressRate": 0, "egressBurst": 0}}
	if _, err := l.libcni().AddNetworkList(t.Context(), b.conf, rt); err != nil {
		t.Fatal(err)
	}
	l.limited(t, "node1", "limited", 4e6, 0)
	l.restartAgent(t, "node1")
	l.limited(t, "node1", "limited", 4e6, 0)
	bad := l.box(t, "node1", "bad")
	rt = bad.rt()
	rt.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"ingressRate": 4_000_000}}
	if _, err := l.libcni().AddNetworkList(t.Context(), bad.conf, rt); err == nil || !strings.Contains(err.Error(), "ingressRate 4000000 with ingressBurst 0") {
		t.Errorf("a rate without a burst: %v", err)
	}
	if err := b.del(t.Context()); err != nil {
		t.Error(err)
	}
}
