package proxynode_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// port is what every server here listens on, and every service.
const port = 8080

// service renders a Service of both families, the n-th address of each range, and
// its slices. spec is more of the Service's spec.
func service(name string, n byte, spec string, endpoints ...string) string {
	var ips []string
	var b strings.Builder
	for _, f := range families() {
		ips = append(ips, f.vip(n).String())
		kind := "IPv4"
		if f.node.Is6() {
			kind = "IPv6"
		}
		fmt.Fprintf(&b, `
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-%[2]s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}
addressType: %[3]s
ports: [{name: tcp, port: %[4]d, protocol: TCP}, {name: udp, port: %[4]d, protocol: UDP}]
endpoints:
`, name, f.name, kind, port)
		none := true
		for _, e := range endpoints {
			at, node, _ := strings.Cut(e, "@")
			a := map[string]netip.Addr{"pod1": f.pods[0], "pod2": f.pods[1], "node": f.node, "lan": f.lan, "own": f.vip(n)}[at]
			fmt.Fprintf(&b, "- {addresses: ['%s'], nodeName: '%s', conditions: {ready: true}}\n", a, node)
			none = false
		}
		if none {
			b.WriteString("  []\n")
		}
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default, uid: uid-%[1]s}
spec:
  clusterIP: '%[2]s'
  clusterIPs: ['%[2]s', '%[3]s']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: tcp, port: %[4]d, protocol: TCP%[6]s}, {name: udp, port: %[4]d, protocol: UDP%[6]s}]
%[5]s
`, name, ips[0], ips[1], port, spec, nodePortOf(spec, n)) + b.String()
}

// nodePortOf gives services of type NodePort the port 30000+n.
func nodePortOf(spec string, n byte) string {
	if !strings.Contains(spec, "type: NodePort") {
		return ""
	}
	return fmt.Sprintf(", nodePort: %d", nodePort(n))
}

func nodePort(n byte) uint16 { return 30000 + uint16(n) }

// base is the node and the ranges.
func base() string {
	var addrs, cidrs, services []string
	for _, f := range families() {
		addrs = append(addrs, fmt.Sprintf("{type: InternalIP, address: '%s'}", f.node))
		cidrs = append(cidrs, "'"+f.podRange.String()+"'")
		services = append(services, "'"+f.services.String()+"'")
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [%s]}
status: {addresses: [%s]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [%s]}
`, strings.Join(cidrs, ","), strings.Join(addrs, ","), strings.Join(services, ","))
}

const (
	web = iota + 10
	hostNetwork
	hairpin
	empty
	localElsewhere
	sticky
	circle
	moving
	balanced
	balancedHere
)

// balancer is a load balancer at these addresses.
func balancer(more string, at ...string) string {
	return "  type: LoadBalancer\n" + more + "\nstatus: {loadBalancer: {ingress: [{ip: '" + strings.Join(at, "'}, {ip: '") + "'}]}}"
}

func startWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	for _, f := range families() {
		listen(t, w.pods[0], "pod1", netip.AddrPortFrom(f.pods[0], port))
		listen(t, w.pods[1], "pod2", netip.AddrPortFrom(f.pods[1], port))
		listen(t, w.node, "node", netip.AddrPortFrom(f.node, port))
		listen(t, w.lan, "lan", netip.AddrPortFrom(f.lan, port))
	}
	w.apply(t, "base", base())
	for _, text := range []string{
		service("web", web, "  type: NodePort", "pod2@node1"),
		service("host-network", hostNetwork, "", "node@node1"),
		service("hairpin", hairpin, "", "pod1@node1"),
		service("empty", empty, "  type: NodePort"),
		service("local-elsewhere", localElsewhere, "  internalTrafficPolicy: Local", "lan@node2"),
		service("sticky", sticky, "  type: NodePort\n  sessionAffinity: ClientIP", "pod1@node1", "pod2@node1", "lan@node2"),
		service("circle", circle, "", "own@node1"),
		service("moving", moving, "  type: NodePort", "pod1@node1"),
	} {
		name := strings.Fields(text[strings.Index(text, "name: "):])[1]
		w.apply(t, strings.TrimSuffix(name, ","), text)
	}
	return w
}

// Whom clients of virtual addresses and node ports reach, and what they are told
// when that is nobody.
func TestServices(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	w.start(t, false)
	for _, f := range families() {
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				name  string
				from  *kernel.Namespace
				to    netip.AddrPort
				want  string // the server
				error error
			}{
				{"node to a pod", w.node, netip.AddrPortFrom(f.vip(web), port), "pod2", nil},
				{"pod to a pod", w.pods[0], netip.AddrPortFrom(f.vip(web), port), "pod2", nil},
				{"node to itself", w.node, netip.AddrPortFrom(f.vip(hostNetwork), port), "node", nil},
				{"pod to its node", w.pods[0], netip.AddrPortFrom(f.vip(hostNetwork), port), "node", nil},
				{"pod to itself", w.pods[0], netip.AddrPortFrom(f.vip(hairpin), port), "pod1", nil},
				{"nobody there", w.node, netip.AddrPortFrom(f.vip(empty), port), "", syscall.ECONNREFUSED},
				{"nobody there for a pod", w.pods[0], netip.AddrPortFrom(f.vip(empty), port), "", syscall.ECONNREFUSED},
				{"no such port", w.node, netip.AddrPortFrom(f.vip(web), 81), "", syscall.ECONNREFUSED},
				{"backend is virtual", w.node, netip.AddrPortFrom(f.vip(circle), port), "", syscall.ECONNREFUSED},
				{"policy has nobody here", w.node, netip.AddrPortFrom(f.vip(localElsewhere), port), "", os.ErrDeadlineExceeded},
				{"no such service", w.node, netip.AddrPortFrom(f.vip(200), port), "", os.ErrDeadlineExceeded},
				{"machine beside the node", w.lan, netip.AddrPortFrom(f.vip(web), port), "", os.ErrDeadlineExceeded},
				{"node port from beside", w.lan, netip.AddrPortFrom(f.node, nodePort(web)), "pod2", nil},
				{"node port from the node", w.node, netip.AddrPortFrom(f.node, nodePort(web)), "pod2", nil},
				{"node port from a pod", w.pods[1], netip.AddrPortFrom(f.node, nodePort(web)), "pod2", nil},
				{"node port of nobody", w.lan, netip.AddrPortFrom(f.node, nodePort(empty)), "", syscall.ECONNREFUSED},
			} {
				t.Run(f.name+"/"+network+"/"+c.name, func(t *testing.T) {
					limit := patience
					if errors.Is(c.error, os.ErrDeadlineExceeded) {
						limit = 300 * time.Millisecond // silence never ends
					}
					got, client, err := ask(c.from, network, c.to, limit)
					if got != c.want || !errors.Is(err, c.error) && !timedOut(c.error, err) {
						t.Errorf("%q, %v, want %q, %v", got, err, c.want, c.error)
					}
					// The client's own address is not kept: the node's is seen, by whichever
					// of its interfaces it goes.
					if c.want != "" && !slices.Contains([]string{f.node.String(), f.gateway.String()}, client) {
						t.Errorf("the backend sees %s, want the node", client)
					}
				})
			}
		}
	}
}

// timedOut reports whether a dialer's own timeout is what was wanted.
func timedOut(want, err error) bool {
	var ne net.Error
	return errors.Is(want, os.ErrDeadlineExceeded) && errors.As(err, &ne) && ne.Timeout()
}

// A client of a service with affinity always reaches the same backend, by the
// virtual address and by the node port.
func TestAffinity(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	w.start(t, false)
	for _, f := range families() {
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]bool{}
			for range 12 {
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(f.vip(sticky), port), netip.AddrPortFrom(f.node, nodePort(sticky))} {
					got, _, err := ask(w.node, network, to, patience)
					if err != nil {
						t.Fatalf("%s %s: %v", f.name, network, err)
					}
					seen[got] = true
				}
			}
			if len(seen) != 1 {
				t.Errorf("%s %s: backends %v, want one", f.name, network, seen)
			}
		}
	}
}

// When a backend goes, open TCP connections stay, new ones and flows of datagrams
// go to the next one.
func TestBackendGoes(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	w.start(t, false)
	type open struct {
		name     string
		tcp, udp net.Conn
	}
	var all []open
	for _, f := range families() {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(f.vip(moving), port), netip.AddrPortFrom(f.node, nodePort(moving))} {
			o := open{name: to.String()}
			for network, c := range map[string]*net.Conn{"tcp": &o.tcp, "udp": &o.udp} {
				var err error
				*c, err = dial(w.node, network, to, patience)
				must(t, err)
				defer (*c).Close()
				if got, _, err := exchange(*c, patience); err != nil || got != "pod1" {
					t.Fatalf("%s: %q, %v", to, got, err)
				}
			}
			all = append(all, o)
		}
	}
	w.apply(t, "moving", service("moving", moving, "  type: NodePort", "pod2@node1"))
	for _, o := range all {
		eventually(t, o.name+": datagrams move on", func() error {
			got, _, err := exchange(o.udp, patience)
			if err == nil && got != "pod2" {
				err = fmt.Errorf("still %s", got)
			}
			return err
		})
		_ = o.tcp.SetDeadline(time.Now().Add(patience))
		if _, err := o.tcp.Write([]byte("still there?")); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
		if _, err := o.tcp.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s: the open connection: %v", o.name, err)
		}
	}
}

// A clean end leaves nothing, unless it is told to; a killed proxy's device is taken
// over; and there is never a second one.
func TestLife(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	works := func() {
		t.Helper()
		for _, f := range families() {
			if got, _, err := ask(w.node, "tcp", netip.AddrPortFrom(f.vip(web), port), patience); err != nil || got != "pod2" {
				t.Errorf("%s: %q, %v", f.name, got, err)
			}
		}
	}
	device := func() (kernel.Link, bool) {
		t.Helper()
		l, err := kernel.Describe(w.node, "netctl0")
		if err != nil && !errors.Is(err, kernel.ErrNotFound) {
			t.Fatal(err)
		}
		return l, err == nil
	}
	first := w.start(t, false)
	works()
	second := w.spawn(t, false)
	if err := second.cmd.Wait(); err == nil || !strings.Contains(second.log.String(), "another process") {
		t.Errorf("a second proxy: %v\n%s", err, second.log)
	}
	works()
	before, _ := device()
	if err := first.end(t, syscall.SIGKILL); err == nil {
		t.Error("it survived")
	}
	if left, ok := device(); !ok || left.Index != before.Index || len(left.Routes) != len(families()) {
		t.Errorf("after a kill: %+v, want the device with its routes", left)
	}
	third := w.start(t, true)
	works()
	if now, _ := device(); now.Index != before.Index {
		t.Errorf("device %d, want the former one, %d", now.Index, before.Index)
	}
	if err := third.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("end with --keep: %v", err)
	}
	if left, ok := device(); !ok || len(left.Routes) != len(families()) {
		t.Errorf("after a clean end with --keep: %+v, want the device with its routes", left)
	}
	fourth := w.start(t, false)
	works()
	if err := fourth.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("end: %v", err)
	}
	if left, ok := device(); ok {
		t.Errorf("after a clean end: %+v", left)
	}
}

// Machines beside the node are told of, once in a while.
func TestForeignSourcesAreReported(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	r := w.start(t, false)
	for _, f := range families() {
		if _, _, err := ask(w.lan, "udp", netip.AddrPortFrom(f.vip(web), port), 100*time.Millisecond); err == nil {
			t.Errorf("%s: the node is a door", f.name)
		}
	}
	w.apply(t, "moving", service("moving", moving, "", "pod2@node1")) // whatever makes it look
	eventually(t, "it is reported", func() error {
		if !strings.Contains(r.log.String(), "neither this node's nor its pods'") {
			return errors.New("nothing said")
		}
		return nil
	})
}

// balance adds load balancers.
func (w *world) balance(t *testing.T) {
	t.Helper()
	w.apply(t, "balanced", service("balanced", balanced, balancer("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000", "203.0.113.1", "2001:db8:ff::1"), "pod2@node1", "lan@node2"))
	w.apply(t, "balanced-here", service("balanced-here", balancedHere, balancer("", "203.0.113.2", "2001:db8:ff::2"), "pod1@node1"))
}

// Load balancers' addresses, led here by the network or on the node's own interface;
// node ports at loopback addresses.
func TestAddressesOfOthers(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	w.balance(t)
	balancers := map[string][2]netip.Addr{}
	for _, f := range families() {
		at := [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}
		if f.node.Is6() {
			at = [2]netip.Addr{netip.MustParseAddr("2001:db8:ff::1"), netip.MustParseAddr("2001:db8:ff::2")}
		}
		balancers[f.name] = at
		must(t, kernel.AddAddress(w.node, "eth0", netip.PrefixFrom(at[1], at[1].BitLen())))
	}
	w.start(t, false)
	for _, f := range families() {
		at := balancers[f.name]
		loop := netip.MustParseAddr("127.0.0.1")
		if f.node.Is6() {
			loop = netip.IPv6Loopback()
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				name string
				from *kernel.Namespace
				to   netip.AddrPort
				want []string
			}{
				{"from beside", w.lan, netip.AddrPortFrom(at[0], port), []string{"pod2"}},
				{"from the node", w.node, netip.AddrPortFrom(at[0], port), []string{"pod2", "lan"}},
				{"from a pod", w.pods[0], netip.AddrPortFrom(at[0], port), []string{"pod2", "lan"}},
				{"the node's own, from beside", w.lan, netip.AddrPortFrom(at[1], port), []string{"pod1"}},
				{"the node's own, from the node", w.node, netip.AddrPortFrom(at[1], port), []string{"pod1"}},
				{"node port at loopback", w.node, netip.AddrPortFrom(loop, nodePort(web)), []string{"pod2"}},
			} {
				got, _, err := ask(c.from, network, c.to, patience)
				if !slices.Contains(c.want, got) || err != nil {
					t.Errorf("%s/%s/%s: %q, %v, want one of %v", f.name, network, c.name, got, err, c.want)
				}
			}
			if got, _, err := ask(w.lan, network, netip.AddrPortFrom(at[0], 81), 300*time.Millisecond); err == nil {
				t.Errorf("%s/%s: another port of the address is answered by %s", f.name, network, got)
			}
		}
	}
}

// get asks an HTTP server from a namespace.
func get(ns *kernel.Namespace, url string) (code int, body string, err error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			return dial(ns, network, netip.MustParseAddrPort(addr), patience)
		},
	}}
	res, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// What watches the proxy, and what it watches for others.
func TestWatched(t *testing.T) {
	t.Parallel()
	w := startWorld(t)
	w.balance(t)
	w.start(t, false)
	for _, f := range families() {
		at := netip.AddrPortFrom(f.node, 32000).String()
		code, body, err := get(w.lan, "http://"+at+"/")
		if code != http.StatusOK || !strings.Contains(body, "\"localEndpoints\": 1,") {
			t.Errorf("%s: %d %s %v", at, code, body, err)
		}
		if code, body, err := get(w.lan, "http://"+netip.AddrPortFrom(f.node, 10256).String()+"/healthz"); code != http.StatusOK || !strings.Contains(body, "lastUpdated") {
			t.Errorf("%s: healthz %d %s %v", f.name, code, body, err)
		}
		if _, _, err := get(w.lan, "http://"+netip.AddrPortFrom(f.node, 10249).String()+"/metrics"); err == nil {
			t.Errorf("%s: the metrics are for others to read", f.name)
		}
	}
	if code, body, err := get(w.node, "http://127.0.0.1:10249/proxyMode"); code != http.StatusOK || body != "netctl" {
		t.Errorf("proxyMode: %d %s %v", code, body, err)
	}
	if _, body, err := get(w.node, "http://127.0.0.1:10249/metrics"); !strings.Contains(body, "kubeproxy_sync_proxy_rules_service_changes_total 10\n") {
		t.Errorf("metrics: %s %v", body, err)
	}
	w.apply(t, "balanced", service("balanced", balanced, balancer("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000", "203.0.113.1"), "lan@node2"))
	eventually(t, "the health check fails", func() error {
		code, body, err := get(w.lan, "http://"+netip.AddrPortFrom(families()[0].node, 32000).String())
		if err == nil && code != http.StatusServiceUnavailable {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}
