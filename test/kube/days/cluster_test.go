package days_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/test/kube/machine"
)

// cluster is a cluster of test/kube that bad things happen to.
type cluster struct {
	name      string
	kube      string // the program of test/kube
	kubectl   string // the script that it makes
	podSubnet string
}

// node names and addresses, as test/kube gives them.
const (
	node1, node2, node3 = "node1", "node2", "node3"
	outside             = "198.51.100.10"
)

// up brings the cluster up.
func up(t *testing.T, name, podSubnet string) *cluster {
	t.Helper()
	kube := filepath.Join(t.TempDir(), "kube")
	run(t, "go", "build", "-o", kube, "../../../test/kube")
	c := &cluster{name: name, kube: kube, podSubnet: podSubnet}
	// A cluster that is up is used as it is, and stays.
	if exec.Command(kube, "--name="+name, "usage").Run() != nil {
		c.control(t, "up", "--nodes=3", "--cni=netctl", "--pod-subnet="+podSubnet)
		if os.Getenv("NETCTL_DAYS_KEEP") != "" {
			t.Logf("cluster %s stays up", name)
			return c.furnish(t)
		}
		t.Cleanup(func() {
			if out, err := exec.Command(kube, "--name="+name, "down").CombinedOutput(); err != nil {
				t.Errorf("take the cluster down: %v\n%s", err, out)
			}
		})
	}
	return c.furnish(t)
}

// furnish starts what every day uses.
func (c *cluster) furnish(t *testing.T) *cluster {
	t.Helper()
	for line := range strings.Lines(c.control(t, "usage")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "kubectl" {
			c.kubectl = f[1]
		}
	}
	c.apply(t, fixture)
	c.get(t, "-n", "days", "rollout", "status", "ds/web", "--timeout=120s")
	return c
}

// fixture is a web server on every node, behind a Service.
const fixture = `
apiVersion: v1
kind: Namespace
metadata: {name: days}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: days}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: days}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// control has test/kube do something.
func (c *cluster) control(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, append([]string{c.kube, "--name=" + c.name}, args...)...)
}

// try runs kubectl.
func (c *cluster) try(args ...string) (string, error) {
	cmd := exec.Command(c.kubectl, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// get runs kubectl, which must succeed.
func (c *cluster) get(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	cmd := exec.Command(c.kubectl, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
}

func (c *cluster) machine(node string) *machine.Machine {
	return machine.New(machine.Config{Name: node, Netns: "kube-" + c.name + "-" + node})
}

// root is where a node's files are on this machine.
func (c *cluster) root(node string) (string, error) {
	pid, ok := c.machine(node).PID()
	if !ok {
		return "", fmt.Errorf("%s is down", node)
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}

// on runs a command on a node.
func (c *cluster) on(node string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd, err := c.machine(node).Command(ctx, args...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on %s: %s: %w: %s", node, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.TrimSpace(string(out)), err
}

// nodes lists the cluster's nodes by the API server's word.
func (c *cluster) nodes() ([]string, error) {
	out, err := c.try("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	return strings.Fields(out), err
}

// agents returns the processes on a node that are netctl agents, by this machine's
// numbers.
func (c *cluster) agents(node string) []int {
	var out []int
	for _, pid := range machine.ProcessesIn("kube-" + c.name + "-" + node) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(line, []byte("/usr/local/bin/netctl\x00agent\x00")) {
			out = append(out, pid)
		}
	}
	return out
}

// holds reports whether a process has the node's netctl0 open, which makes it the
// one that serves.
func holds(pid int) bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return false
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && bytes.Contains(text, []byte("iff:\tnetctl0\n")) {
			return true
		}
	}
	return false
}

// status asks the agent that serves on a node.
func (c *cluster) status(node string) (status.Status, error) {
	root, err := c.root(node)
	if err != nil {
		return status.Status{}, err
	}
	return status.Read(context.Background(), filepath.Join(root, "run/netctl"))
}

// agentPod returns the newest agent pod of a node.
func (c *cluster) agentPod(node string) (string, error) {
	out, err := c.try("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=netctl", "--field-selector=spec.nodeName="+node,
		"--sort-by=.metadata.creationTimestamp", "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`)
	names := strings.Fields(out)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no agent on %s", node)
	}
	if err != nil {
		return "", err
	}
	return names[len(names)-1], nil
}

// condition is a node's Ready: its status and since when.
func (c *cluster) condition(t *testing.T, node string) string {
	t.Helper()
	return c.get(t, "get", "node", node, "-o",
		`jsonpath={.status.conditions[?(@.type=="Ready")].status} since {.status.conditions[?(@.type=="Ready")].lastTransitionTime}`)
}

// object is what these tests read of a Pod.
type object struct {
	Metadata struct {
		Name, Namespace, UID string
		DeletionTimestamp    string
	}
	Spec struct {
		NodeName    string
		HostNetwork bool
	}
	Status struct {
		Phase      string
		PodIPs     []struct{ IP string }
		Conditions []struct{ Type, Status string }
	}
}

func (o *object) ready() bool {
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && o.Metadata.DeletionTimestamp == ""
		}
	}
	return false
}

func (o *object) ip() string {
	if len(o.Status.PodIPs) == 0 {
		return ""
	}
	return o.Status.PodIPs[0].IP
}

// pods lists pods.
func (c *cluster) pods(args ...string) ([]object, error) {
	out, err := c.try(append([]string{"get", "pods", "-o", "json"}, args...)...)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []object }
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

// readyPods waits until exactly n pods match, and all are ready.
func (c *cluster) readyPods(t *testing.T, n int, args ...string) []object {
	t.Helper()
	var out []object
	c.await(t, strconv.Itoa(n)+" ready pods", 3*time.Minute, func() (err error) {
		if out, err = c.pods(args...); err != nil {
			return err
		}
		if len(out) != n {
			return fmt.Errorf("%d pods, want %d", len(out), n)
		}
		for _, p := range out {
			if !p.ready() {
				return fmt.Errorf("%s on %s is %s and not ready", p.Metadata.Name, p.Spec.NodeName, p.Status.Phase)
			}
		}
		return nil
	})
	return out
}

// web returns the fixture's pod of a node.
func (c *cluster) web(t *testing.T, node string) object {
	t.Helper()
	return c.readyPods(t, 1, "-n", "days", "-l", "app=web", "--field-selector=spec.nodeName="+node)[0]
}

func (c *cluster) serviceIP(t *testing.T) string {
	t.Helper()
	return c.get(t, "-n", "days", "get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
}

// await tries until it works.
func (c *cluster) await(t *testing.T, what string, limit time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// describe logs what helps to understand a failure.
func (c *cluster) describe(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "nodes,pods,blocks", "-A", "-o", "wide"},
		{"-n", "days", "get", "events", "--sort-by=.lastTimestamp"},
		{"-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=netctl", "--tail=60", "--prefix"},
	} {
		out, err := c.try(args...)
		t.Logf("%v: %v\n%s", args, err, last(out, 150))
	}
}

func last(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
