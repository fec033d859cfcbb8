package days_test

import (
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"
)

// A day is what happens, and what was seen.
type day struct {
	name string
	ci   bool // part of the selection "ci"
	// both: it depends on where pod addresses come from, so it happens on a cluster
	// with podSubnet (node.spec.podCIDRs), too.
	both bool
	// run returns one line about what was seen.
	run func(t *testing.T, c *cluster) string
}

// days are in an order in which a later one finds what an earlier one left.
var days = []day{
	{"basics", true, true, dayBasics},
	{"agent-deleted", true, true, dayAgentDeleted},
	{"agent-killed-in-adds", true, true, dayAgentKilledInAdds},
	{"containerd-restarted", false, false, dayContainerdRestarted},
	{"kubelet-restarted", false, false, dayKubeletRestarted},
	{"same-name", true, false, daySameName},
	{"rollout", false, false, dayRollout},
	{"kernel-settings", false, false, dayKernelSettings},
	{"api-server-down", false, false, dayAPIServerDown},
	{"hundred-pods", false, true, dayHundredPods},
	{"node-rebooted", true, true, dayNodeRebooted},
	{"control-plane-rebooted", false, false, dayControlPlaneRebooted},
	{"node-replaced", false, true, dayNodeReplaced},
	{"node-readdressed", false, false, dayNodeReaddressed},
	{"uninstalled", false, false, dayUninstalled},
}

func TestMain(m *testing.M) {
	if os.Getenv(probeEnv) != "" { // a child of ours in a pod's network
		if err := probe(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestDays(t *testing.T) {
	chosen := os.Getenv("NETCTL_DAYS")
	if chosen == "" {
		t.Skip("NETCTL_DAYS names no days; make kube-days")
	}
	name := os.Getenv("NETCTL_DAYS_NAME")
	if name == "" {
		name = "days"
	}
	match := func(d day) bool { return d.ci }
	if chosen != "ci" {
		r, err := regexp.Compile("^(" + chosen + ")$")
		if err != nil {
			t.Fatal(err)
		}
		match = func(d day) bool { return r.MatchString(d.name) }
	}
	for _, mode := range []struct {
		name, cluster, podSubnet string
	}{
		{"blocks", name, ""},
		{"podcidrs", name + "-subnet", "10.32.0.0/16"},
	} {
		if only := os.Getenv("NETCTL_DAYS_MODE"); only != "" && only != mode.name {
			continue
		}
		t.Run(mode.name, func(t *testing.T) {
			var todo []day
			for _, d := range days {
				// In continuous integration one cluster has to do.
				if match(d) && (mode.podSubnet == "" || d.both && chosen != "ci") {
					todo = append(todo, d)
				}
			}
			if len(todo) == 0 {
				t.Skip("no such day")
			}
			c := up(t, mode.cluster, mode.podSubnet)
			for _, d := range todo {
				if !t.Run(d.name, func(t *testing.T) { c.live(t, d) }) {
					c.describe(t)
					return // what a broken cluster does proves nothing
				}
			}
		})
	}
}

// live lives a day: the books balance before and after.
func (c *cluster) live(t *testing.T, d day) {
	start := time.Now()
	c.balanced(t)
	seen := d.run(t, c)
	if t.Failed() {
		return
	}
	c.balanced(t)
	c.reachable(t)
	t.Logf("day %s: %s (%s)", d.name, seen, time.Since(start).Round(time.Second))
}
