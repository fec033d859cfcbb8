package days_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func dayBasics(t *testing.T, c *cluster) string {
	c.reachable(t)
	block := c.get(t, "get", "blocks", "-o", "jsonpath={.items[*].spec.cidr}")
	ranges := c.get(t, "get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}")
	if (c.podSubnet == "") != (ranges == "") {
		t.Errorf("podCIDRs of nodes %q with podSubnet %q", ranges, c.podSubnet)
	}
	return fmt.Sprintf("every pod is reached from pods, nodes and outside; blocks %q, podCIDRs %q", block, ranges)
}

// traffic is what goes on between two nodes, and on one, while something happens.
type traffic struct{ each, service, local, one *running }

// traffic starts requests from the pod of one node.
func (c *cluster) traffic(t *testing.T, from, to string) *traffic {
	t.Helper()
	a, b := c.web(t, from), c.web(t, to)
	netns := c.in(t, &a)
	url := "http://" + b.ip() + ":8080/hostname"
	root := "/run/netns/kube-" + c.name + "-" + from
	return &traffic{
		each:    start(t, from+" to "+to, netns, "each", url),
		service: start(t, "pod to service", netns, "each", "http://"+c.serviceIP(t)+"/hostname"),
		local:   start(t, "node to pod", root, "each", "http://"+a.ip()+":8080/hostname"),
		one:     start(t, "one connection", netns, "one", url),
	}
}

func (r *traffic) all() []*running { return []*running{r.each, r.service, r.local, r.one} }

// recovered: everything is answered again, and the connection lived through it.
func (r *traffic) recovered(t *testing.T) string {
	t.Helper()
	var gaps []string
	for _, p := range r.all() {
		gaps = append(gaps, p.what+": "+p.recovered(t).String())
	}
	return strings.Join(gaps, "; ")
}

// unharmed: nothing happened at all.
func (r *traffic) unharmed(t *testing.T) string {
	t.Helper()
	sent := 0
	for _, p := range r.all() {
		sent += p.unharmed(t).Sent
	}
	return fmt.Sprintf("%d requests, none failed", sent)
}

// sleepers makes a Deployment of pods that do next to nothing on a node.
func (c *cluster) sleepers(t *testing.T, name, node string, n int) {
	t.Helper()
	c.apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: days}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeName: %[2]s
      terminationGracePeriodSeconds: 0
      containers:
      - name: sleep
        image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
        args: [netexec, --http-port=8080]
`, name, node, n))
}

// dismiss deletes a Deployment and waits until its pods are gone.
func (c *cluster) dismiss(t *testing.T, name string) {
	t.Helper()
	c.get(t, "-n", "days", "delete", "deploy", name, "--ignore-not-found")
	c.readyPods(t, 0, "-n", "days", "-l", "app="+name)
}

// fresh: a new pod on a node starts and is reached from another node.
func (c *cluster) fresh(t *testing.T, node, from string) time.Duration {
	t.Helper()
	begin := time.Now()
	c.sleepers(t, "fresh", node, 1)
	p := c.readyPods(t, 1, "-n", "days", "-l", "app=fresh")[0]
	took := time.Since(begin)
	a := c.web(t, from)
	netns := c.in(t, &a)
	c.await(t, "the new pod's answer", 20*time.Second, func() error { return reach(netns, "http://"+p.ip()+":8080/hostname") })
	c.dismiss(t, "fresh")
	return took.Round(100 * time.Millisecond)
}

// serves waits until another agent pod than before serves on a node.
func (c *cluster) serves(t *testing.T, node string, before []int) {
	t.Helper()
	c.await(t, "an agent on "+node, 2*time.Minute, func() error {
		for _, pid := range c.agents(node) {
			if !slices.Contains(before, pid) && holds(pid) {
				_, err := c.status(node)
				return err
			}
		}
		return errors.New("no new one serves")
	})
}

func dayAgentDeleted(t *testing.T, c *cluster) string {
	ready, before := c.condition(t, node2), c.agents(node2)
	traffic := c.traffic(t, node2, node3)
	pod, err := c.agentPod(node2)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	c.get(t, "-n", "kube-system", "delete", "pod", pod)
	c.serves(t, node2, before)
	seen := traffic.recovered(t)
	took := c.fresh(t, node2, node3)
	if now := c.condition(t, node2); now != ready {
		t.Errorf("node was %s and is %s", ready, now)
	}
	return fmt.Sprintf("node stayed Ready; %s; a new pod took %s", seen, took)
}

func dayAgentKilledInAdds(t *testing.T, c *cluster) string {
	const pods = 20
	ready := c.condition(t, node2)
	traffic := c.traffic(t, node2, node3)
	begin := time.Now()
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
	before := c.agents(node2)
	for _, pid := range before {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	c.serves(t, node2, before)
	all := c.readyPods(t, pods, "-n", "days", "-l", "app=many")
	took := time.Since(begin).Round(100 * time.Millisecond)
	c.balanced(t)
	from := c.web(t, node3)
	netns := c.in(t, &from)
	for _, p := range all {
		c.await(t, "an answer of "+p.Metadata.Name, 20*time.Second, func() error { return reach(netns, "http://"+p.ip()+":8080/hostname") })
	}
	seen := traffic.recovered(t)
	c.dismiss(t, "many")
	if now := c.condition(t, node2); now != ready {
		t.Errorf("node was %s and is %s", ready, now)
	}
	return fmt.Sprintf("killed with %d records, all %d pods ready after %s and reached; %s", at, pods, took, seen)
}

// dayRollout: connections live through the change of every agent, and no two serve
// a node at the same time.
func dayRollout(t *testing.T, c *cluster) string {
	ready := c.condition(t, node2)
	traffic := c.traffic(t, node2, node3)
	stop, watched := make(chan struct{}), make(chan string, 1)
	most := 0
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			serving := 0
			agents := c.agents(node2)
			for _, pid := range agents {
				if holds(pid) {
					serving++
				}
			}
			most = max(most, len(agents))
			if serving > 1 {
				watched <- fmt.Sprintf("%d of the processes %v serve", serving, agents)
				return
			}
		}
	}()
	c.get(t, "-n", "kube-system", "rollout", "restart", "ds/netctl")
	c.get(t, "-n", "kube-system", "rollout", "status", "ds/netctl", "--timeout=180s")
	close(stop)
	if bad, ok := <-watched; ok {
		t.Error(bad)
	}
	if most < 2 {
		t.Errorf("never more than %d agents on the node: the new one came after the old one had gone", most)
	}
	seen := traffic.recovered(t)
	took := c.fresh(t, node2, node3)
	if now := c.condition(t, node2); now != ready {
		t.Errorf("node was %s and is %s", ready, now)
	}
	return fmt.Sprintf("up to %d agents side by side, one served; %s; a new pod took %s", most, seen, took)
}
