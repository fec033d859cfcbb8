package days_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/record"
)

func dayContainerdRestarted(t *testing.T, c *cluster) string {
	return c.serviceRestarted(t, "containerd")
}

func dayKubeletRestarted(t *testing.T, c *cluster) string { return c.serviceRestarted(t, "kubelet") }

// serviceRestarted: what runs on a node does not notice, and pods that were being
// made meanwhile get made.
func (c *cluster) serviceRestarted(t *testing.T, service string) string {
	const pods = 10
	traffic := c.traffic(t, node2, node3)
	c.sleepers(t, "many", node2, pods)
	root, err := c.root(node2)
	if err != nil {
		t.Fatal(err)
	}
	var at int
	c.await(t, "some ADDs", time.Minute, func() error {
		recs, err := records(root)
		if at = len(recs); err == nil && at < pods/3 {
			err = fmt.Errorf("%d so far", at)
		}
		return err
	})
	c.control(t, "restart", service, node2)
	c.readyPods(t, pods, "-n", "days", "-l", "app=many")
	c.balanced(t)
	seen := traffic.unharmed(t)
	c.dismiss(t, "many")
	return fmt.Sprintf("restarted with %d pods made, all %d got ready; %s; a new pod took %s", at, pods, seen, c.fresh(t, node2, node3))
}

// identity is what a node is to the others, and has to stay through a reboot.
func (c *cluster) identity(t *testing.T, node string) string {
	t.Helper()
	key := c.get(t, "get", "node", node, "-o", `jsonpath={.metadata.annotations.netctl\.io/public-key}`)
	var blocks []string
	for line := range strings.Lines(c.get(t, "get", "blocks", "-o", `jsonpath={range .items[*]}{.spec.node} {.spec.cidr}{"\n"}{end}`)) {
		if cidr, ok := strings.CutPrefix(line, node+" "); ok {
			blocks = append(blocks, strings.TrimSpace(cidr))
		}
	}
	slices.Sort(blocks)
	return fmt.Sprintf("key %s, blocks %v", key, blocks)
}

// handshaken waits until every other node has shaken hands with a node after a
// point in time.
func (c *cluster) handshaken(t *testing.T, node string, since time.Time) {
	t.Helper()
	nodes, err := c.nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range nodes {
		if other == node {
			continue
		}
		c.await(t, "a handshake of "+other+" with "+node, time.Minute, func() error {
			s, err := c.status(other)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.Node == node && p.LastHandshake.After(since) {
					return nil
				}
			}
			return fmt.Errorf("peers of %s: %+v", other, s.Peers)
		})
	}
}

func dayNodeRebooted(t *testing.T, c *cluster) string         { return c.rebooted(t, node2, node3) }
func dayControlPlaneRebooted(t *testing.T, c *cluster) string { return c.rebooted(t, node1, node3) }

// rebooted: the pods come back by themselves and the node is who it was.
func (c *cluster) rebooted(t *testing.T, node, other string) string {
	c.sleepers(t, "many", node, 5)
	c.readyPods(t, 5, "-n", "days", "-l", "app=many")
	before := c.identity(t, node)
	p, o := c.web(t, node), c.web(t, other)
	bystander := start(t, other+" to itself", c.in(t, &o), "each", "http://"+o.ip()+":8080/hostname")
	begin := time.Now()
	c.control(t, "node", "reboot", node)
	c.await(t, "pods of "+node, 3*time.Minute, func() error {
		pods, err := c.pods("-n", "days")
		if err != nil {
			return err
		}
		root, err := c.root(node)
		if err != nil {
			return err
		}
		recs, err := records(root)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Spec.NodeName != node {
				continue
			}
			if !slices.ContainsFunc(recs, func(r record.Record) bool {
				return r.UID == p.Metadata.UID && r.Ready && r.Addresses[0].String() == p.ip()
			}) || !p.ready() {
				return fmt.Errorf("%s is not back", p.Metadata.Name)
			}
		}
		return nil
	})
	took := time.Since(begin).Round(time.Second)
	c.balanced(t)
	c.reachable(t)
	c.handshaken(t, node, begin)
	if now := c.identity(t, node); now != before {
		t.Errorf("%s had %s and has %s", node, before, now)
	}
	if now := c.web(t, node); now.Metadata.UID != p.Metadata.UID {
		t.Errorf("the pod of %s is another one", node)
	}
	bystander.unharmed(t)
	c.dismiss(t, "many")
	return fmt.Sprintf("6 pods were back %s after the power cut, same key and blocks, peers shook hands anew", took)
}

// dayNodeReplaced: another machine joins under the name, and with the address, of
// one that was deleted.
func dayNodeReplaced(t *testing.T, c *cluster) string {
	before := c.identity(t, node3)
	traffic := c.traffic(t, node1, node2)
	c.control(t, "node", "remove", node3)
	begin := time.Now()
	c.control(t, "node", "join", node3)
	c.readyPods(t, 3, "-n", "days", "-l", "app=web")
	took := time.Since(begin).Round(time.Second)
	c.balanced(t)
	c.reachable(t)
	c.handshaken(t, node3, begin)
	now := c.identity(t, node3)
	if key, _, _ := strings.Cut(before, ","); strings.HasPrefix(now, key) {
		t.Errorf("the new machine has the key of the old one: %s", key)
	}
	for _, p := range []*running{traffic.each, traffic.local, traffic.one} {
		p.unharmed(t)
	}
	seen := traffic.service.recovered(t) // some requests went to the pod that died
	return fmt.Sprintf("joined under the same name, ready and reached after %s; %s -> %s; service meanwhile: %s", took, before, now, seen)
}

// dayNodeReaddressed: a node goes, and another one gets its address, first having
// had one of its own: the change of a node's address is part of the day.
func dayNodeReaddressed(t *testing.T, c *cluster) string {
	const heir = "node4"
	address := c.get(t, "get", "node", node3, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	c.control(t, "node", "remove", node3)
	c.control(t, "node", "join", heir)
	c.readyPods(t, 3, "-n", "days", "-l", "app=web")
	c.balanced(t)
	c.reachable(t)
	begin := time.Now()
	for _, line := range []string{
		"ip addr flush dev eth0",
		"ip addr add " + address + "/24 dev eth0",
		"ip route replace default via 192.0.2.1",
		`sed -i "s/192\.0\.2\.14/` + address + `/" /var/lib/kubelet/kubeadm-flags.env`,
	} {
		if _, err := c.on(heir, "sh", "-c", line); err != nil {
			t.Fatal(err)
		}
	}
	c.control(t, "restart", "kubelet", heir)
	c.await(t, heir+" at "+address, time.Minute, func() error {
		now, err := c.try("get", "node", heir, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		if err == nil && now != address {
			err = fmt.Errorf("it is at %s", now)
		}
		return err
	})
	c.balanced(t)
	c.reachable(t)
	c.handshaken(t, heir, begin)
	took := time.Since(begin).Round(time.Second)
	c.control(t, "node", "remove", heir)
	c.control(t, "node", "join", node3)
	c.readyPods(t, 3, "-n", "days", "-l", "app=web")
	return fmt.Sprintf("%s took over %s of a node that was deleted; everything is reached %s after the change", heir, address, took)
}

// dayKernelSettings: nothing depends on how a node's kernel filters and forwards.
func dayKernelSettings(t *testing.T, c *cluster) string {
	nodes, err := c.nodes()
	if err != nil {
		t.Fatal(err)
	}
	set := func(rp, forward string) error {
		var errs []error
		for _, n := range nodes {
			_, err := c.on(n, "sh", "-c", "sysctl -qw net.ipv4.ip_forward="+forward+
				"; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo "+rp+" >$f; done")
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	t.Cleanup(func() {
		if err := set("0", "1"); err != nil {
			t.Error(err)
		}
	})
	var tried []string
	for _, forward := range []string{"1", "0"} {
		for _, rp := range []string{"0", "1", "2"} {
			if err := set(rp, forward); err != nil {
				t.Fatal(err)
			}
			if rp == "1" && forward == "0" { // also for what is made then
				c.fresh(t, node2, node3)
			}
			c.reachable(t)
			tried = append(tried, rp+"/"+forward)
		}
	}
	return "pods, nodes, services, node ports, names and the outside are reached with rp_filter/ip_forward " + strings.Join(tried, ", ")
}
