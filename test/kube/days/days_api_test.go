package days_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/record"
)

// dayAPIServerDown: what runs goes on without the API server, also after a restart
// of an agent; what changed meanwhile is made up for.
func dayAPIServerDown(t *testing.T, c *cluster) string {
	const outage, pods = time.Minute, 10
	traffic := c.traffic(t, node2, node3)
	c.sleepers(t, "many", node2, pods)
	many := c.readyPods(t, pods, "-n", "days", "-l", "app=many")
	c.balanced(t)
	c.get(t, "-n", "days", "scale", "deploy/many", fmt.Sprintf("--replicas=%d", 2*pods)) // in full swing
	begin := time.Now()
	c.control(t, "apiserver", "stop")
	started := false
	t.Cleanup(func() {
		if !started {
			c.control(t, "apiserver", "start")
		}
	})
	// A sandbox that dies during the outage makes kubelet and containerd delete and
	// add by themselves.
	root, err := c.root(node2)
	if err != nil {
		t.Fatal(err)
	}
	victim := c.record(t, &many[0])
	if _, err := c.on(node2, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", victim.ContainerID); err != nil {
		t.Fatal(err)
	}
	replaced := func() error {
		recs, err := records(root)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(recs, func(r record.Record) bool {
			return r.UID == victim.UID && r.ContainerID != victim.ContainerID && r.Ready
		}) {
			return errors.New("no other sandbox")
		}
		return nil
	}
	c.await(t, "a sandbox in place of one that died", outage, replaced)

	before := c.agents(node2)
	for _, pid := range before {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	c.serves(t, node2, before)
	from, to := many[1], many[2]
	recs, err := records(root)
	if err != nil || len(recs) < pods {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	inside := func(p *object) string { // by the record: the API server is down
		for _, r := range recs {
			if r.UID == p.Metadata.UID {
				return root + strings.TrimPrefix(r.Netns, "/var")
			}
		}
		t.Fatalf("no record of %s", p.Metadata.Name)
		return ""
	}
	c.await(t, "traffic of the restarted agent's pods", 30*time.Second, func() error {
		return reach(inside(&from), "http://"+to.ip()+":8080/hostname")
	})
	time.Sleep(time.Until(begin.Add(outage)))
	seen := traffic.recovered(t)
	without := time.Since(begin).Round(time.Second)
	c.control(t, "apiserver", "start")
	started = true
	c.readyPods(t, 2*pods, "-n", "days", "-l", "app=many")
	c.balanced(t)
	took := c.fresh(t, node2, node3)
	c.dismiss(t, "many")
	return fmt.Sprintf("%s without it, with a sandbox replaced and an agent killed: %s; then %d pods, a new one took %s",
		without, seen, 2*pods, took)
}
