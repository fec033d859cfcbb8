package days_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// daySameName: the pod of a StatefulSet is deleted again and again, with grace and
// without; whoever asks for it gets the pod that is there now.
func daySameName(t *testing.T, c *cluster) string {
	const rounds = 5
	t.Cleanup(func() { _, _ = c.try("-n", "days", "delete", "statefulset,svc", "twin", "--ignore-not-found") })
	c.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: twin, namespace: days}
spec:
  selector: {app: twin}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: twin, namespace: days}
spec:
  serviceName: twin
  selector: {matchLabels: {app: twin}}
  template:
    metadata: {labels: {app: twin}}
    spec:
      nodeName: node2
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
`)
	service := c.get(t, "-n", "days", "get", "svc", "twin", "-o", "jsonpath={.spec.clusterIP}")
	clients := []object{c.web(t, node3), c.web(t, node2)}
	var uids, ips []string
	for round := range rounds {
		p := c.readyPods(t, 1, "-n", "days", "-l", "app=twin")[0]
		for _, a := range clients {
			netns := c.in(t, &a)
			for _, url := range []string{"http://" + p.ip() + ":8080/hostname", "http://" + service + "/hostname"} {
				c.await(t, fmt.Sprintf("round %d: %s from %s", round, url, a.Spec.NodeName), 10*time.Second, func() error { return reach(netns, url) })
			}
		}
		uids, ips = append(uids, p.Metadata.UID), append(ips, p.ip())
		if round == rounds-1 {
			break
		}
		args := []string{"-n", "days", "delete", "pod", "twin-0"}
		if round%2 == 1 { // the object goes at once, and its DEL comes after the next ADD
			args = append(args, "--force", "--grace-period=0")
		}
		c.get(t, args...)
		c.await(t, "another twin-0", time.Minute, func() error {
			if now, err := c.try("-n", "days", "get", "pod", "twin-0", "-o", "jsonpath={.metadata.uid}"); err != nil || now == p.Metadata.UID {
				return fmt.Errorf("still %s: %w", now, err)
			}
			return nil
		})
	}
	c.balanced(t)
	c.get(t, "-n", "days", "delete", "statefulset,svc", "twin")
	c.readyPods(t, 0, "-n", "days", "-l", "app=twin")
	for i, u := range uids[1:] {
		if u == uids[i] {
			t.Errorf("pod %s was not replaced", u)
		}
	}
	return fmt.Sprintf("%d pods of one name, half of them deleted by force, at %s: each got its traffic from two nodes and as a service",
		rounds, strings.Join(ips, ", "))
}

// dayHundredPods: what comes and goes leaves nothing.
func dayHundredPods(t *testing.T, c *cluster) string {
	const pods, rounds = 100, 3
	settled := func() tally { // flows of requests of before age
		c.balanced(t)
		return c.tally(t, node3)
	}
	c.fresh(t, node3, node2)
	before := settled()
	var times []string
	for range rounds {
		begin := time.Now()
		c.sleepers(t, "hundred", node3, pods)
		all := c.readyPods(t, pods, "-n", "days", "-l", "app=hundred")
		times = append(times, time.Since(begin).Round(time.Second).String())
		from := c.web(t, node2)
		netns := c.in(t, &from)
		for _, p := range all {
			c.await(t, "an answer of "+p.Metadata.Name, 20*time.Second, func() error { return reach(netns, "http://"+p.ip()+":8080/hostname") })
		}
		c.dismiss(t, "hundred")
	}
	var after tally
	// Flows to pods that ended are forgotten with them; those of the probes just now
	// and a few goroutines of connections to the API server come and go.
	c.await(t, "what was before", 3*time.Minute, func() error {
		after = settled()
		if after.goroutines > before.goroutines+10 || after.files > before.files+5 || after.tuns > before.tuns || after.flows > before.flows+100 {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	return fmt.Sprintf("%d pods ready after %s; before %+v, after %+v", pods, strings.Join(times, ", "), before, after)
}
