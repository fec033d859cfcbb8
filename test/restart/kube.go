package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/test/kube/machine"
	"github.com/netctl/netctl/test/restart/agents"
	"github.com/netctl/netctl/test/restart/load"
)

// The times of a real cluster.
const (
	podsWait = 3 * time.Minute
	// backWait is how long an agent may take to serve: a container that crashes again
	// and again is started after up to five minutes.
	backWait = 7 * time.Minute
)

// kubeDriver has the load run on a cluster of test/kube, of two nodes.
type kubeDriver struct {
	options options
	dir     string
	kube    string // the program of test/kube
	kubectl string // the script that it makes
	found   *scene
}

func newKubeDriver(ctx context.Context, o options) (_ *kubeDriver, err error) {
	d := &kubeDriver{options: o, found: &scene{}}
	if d.dir, err = os.MkdirTemp("/run", "netctl-restart"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	d.kube = filepath.Join(d.dir, "kube")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", d.kube, "./test/kube").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test/kube: %w: %s", err, out)
	}
	fmt.Fprintf(o.log, "restart: cluster %s\n", o.name)
	usage, err := d.control(ctx, "usage")
	if err != nil { // it is not up; one that is is used as it is
		if _, err := d.control(ctx, "up", "--nodes=2", "--cni=netctl"); err != nil {
			return nil, err
		}
		if usage, err = d.control(ctx, "usage"); err != nil {
			return nil, err
		}
	}
	for line := range strings.Lines(usage) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "kubectl" {
			d.kubectl = f[1]
		}
	}
	if err := d.apply(ctx, kubeManifest()); err != nil {
		return nil, err
	}
	return d, d.look(ctx)
}

// image is one that every test cluster has.
const image = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"

// strictPods are probed every second and may not take longer than that to answer.
const strictPods = "strict"

// kubeManifest is the scene's pods, which do nothing, its Services, and a pod on
// each node that a kubelet looks at strictly.
func kubeManifest() string {
	var b strings.Builder
	for _, p := range podPlaces("node1", "node2") {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {service: %q}}\nspec:\n  nodeName: %s\n"+
			"  terminationGracePeriodSeconds: 1\n  tolerations: [{operator: Exists}]\n"+
			"  containers: [{name: idle, image: %q, args: [pause]}]\n", p.name, p.service, p.node, image)
	}
	fmt.Fprintf(&b, `---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: %[2]q
        args: [netexec, --http-port=8080]
        livenessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 3}
`, strictPods, image)
	b.WriteString(serviceManifests())
	return b.String()
}

// control runs the program of test/kube.
func (d *kubeDriver) control(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, d.kube, append([]string{"--name=" + d.options.name}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kube %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// get runs kubectl.
func (d *kubeDriver) get(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.kubectl, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimSpace(string(out)), err
}

func (d *kubeDriver) apply(ctx context.Context, manifest string) error {
	return await(ctx, podsWait, func() error { // the namespace may not have its account yet
		cmd := exec.CommandContext(ctx, d.kubectl, "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
		out, err := cmd.CombinedOutput()
		if err != nil {
			wait(ctx, time.Second)
			return fmt.Errorf("kubectl apply: %w: %s", err, out)
		}
		return nil
	})
}

// look waits for the pods and finds what the scene consists of.
func (d *kubeDriver) look(ctx context.Context) error {
	pods := map[string]*load.Place{}
	for _, p := range podPlaces("node1", "node2") {
		if _, err := d.get(ctx, "wait", "--for=condition=Ready", "pod/"+p.name, "--timeout="+podsWait.String()); err != nil {
			return err
		}
		text, err := d.get(ctx, "get", "pod", p.name, "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return err
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.name, err)
		}
		path, err := d.namespaceOf(p.node, text)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.name, err)
		}
		if pods[p.name], err = load.Enter(p.name, path, addr); err != nil {
			return err
		}
	}
	d.found.cast(pods)
	if _, err := d.get(ctx, "rollout", "status", "ds/"+strictPods, "--timeout="+podsWait.String()); err != nil {
		return err
	}
	for _, host := range []struct{ name, addr string }{{"node1", "192.0.2.11"}, {"node2", "192.0.2.12"}, {"outside", "198.51.100.10"}} {
		p, err := load.Enter(host.name, filepath.Join(kernel.RuntimeDir, d.netns(host.name)), netip.MustParseAddr(host.addr))
		if err != nil {
			return err
		}
		if host.name == "outside" {
			d.found.outside = p
		} else {
			d.found.nodes = append(d.found.nodes, p)
		}
	}
	services, err := d.get(ctx, "get", "services", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.clusterIP}{"\n"}{end}`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(services) {
		f := strings.Fields(line)
		if addr, err := netip.ParseAddr(f[len(f)-1]); err == nil {
			d.found.service(f[0], addr)
		}
	}
	return nil
}

func (d *kubeDriver) netns(part string) string { return "kube-" + d.options.name + "-" + part }

// root is where a node's files are on this machine.
func (d *kubeDriver) root(node string) (string, error) {
	pid, ok := machine.New(machine.Config{Name: node, Netns: d.netns(node)}).PID()
	if !ok {
		return "", fmt.Errorf("%s is down", node)
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}

// namespaceOf finds the namespace of a node in which an interface has an address.
func (d *kubeDriver) namespaceOf(node, address string) (string, error) {
	root, err := d.root(node)
	if err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(root, "run/netns/*"))
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		ns, err := kernel.OpenNamespace(path)
		if err != nil {
			continue // gone, or none
		}
		found := false
		err = ns.Do(func() error {
			all, err := net.InterfaceAddrs()
			found = slices.ContainsFunc(all, func(a net.Addr) bool {
				n, ok := a.(*net.IPNet)
				return ok && n.IP.String() == address
			})
			return err
		})
		if err = errors.Join(err, ns.Close()); err == nil && found {
			return path, nil
		}
	}
	return "", fmt.Errorf("no network namespace on %s has %s", node, address)
}

func (d *kubeDriver) scene() *scene { return d.found }

func (d *kubeDriver) loads() []load.Load { return []load.Load{&probes{d: d}} }

func (d *kubeDriver) weigh(ctx context.Context) (agents.Weight, error) {
	var w agents.Weight
	for _, n := range d.found.nodes {
		dir, err := d.stateDir(n.Name)
		if err != nil {
			return w, err
		}
		pids := slices.DeleteFunc(machine.ProcessesIn(d.netns(n.Name)), func(pid int) bool { return !agents.Runs(pid, "agent") && !agents.Runs(pid, "hold") })
		if err := w.Add(ctx, pids, dir); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (d *kubeDriver) stateDir(node string) (string, error) {
	root, err := d.root(node)
	return filepath.Join(root, "run/netctl"), err
}

func (d *kubeDriver) close() error {
	errs := []error{d.found.close()}
	if !d.options.keep {
		_, err := d.control(context.Background(), "down")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// probes are what the kubelets say of the strict pods.
type probes struct {
	d    *kubeDriver
	last load.Counts
}

// Name implements load.Load.
func (p *probes) Name() string { return "liveness" }

// Cut implements load.Load. While the API server is away there is nothing new.
func (p *probes) Cut() load.Counts {
	now, err := p.now()
	if err != nil {
		return load.Counts{}
	}
	c := load.Counts{Failed: now.Failed - p.last.Failed, Lost: now.Lost - p.last.Lost}
	p.last = now
	return c
}

// now counts failed probes, and restarts as Lost, since the pods began.
func (p *probes) now() (c load.Counts, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := p.d.get(ctx, "get", "events", "--field-selector=reason=Unhealthy", "-o", "json")
	if err != nil {
		return c, err
	}
	var events struct {
		Items []struct {
			Count          int
			InvolvedObject struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		return c, err
	}
	for _, e := range events.Items {
		if strings.HasPrefix(e.InvolvedObject.Name, strictPods) {
			c.Failed += max(1, e.Count)
		}
	}
	out, err = p.d.get(ctx, "get", "pods", "-l", "app="+strictPods, "-o", "json")
	if err != nil {
		return c, err
	}
	var pods struct {
		Items []struct {
			Status struct{ ContainerStatuses []struct{ RestartCount int } }
		}
	}
	err = json.Unmarshal([]byte(out), &pods)
	for _, pod := range pods.Items {
		for _, s := range pod.Status.ContainerStatuses {
			c.Lost += s.RestartCount
		}
	}
	return c, err
}

// Flows implements load.Load.
func (p *probes) Flows(time.Time) error { return nil }

// Settle implements load.Load: an event takes a moment.
func (p *probes) Settle(ctx context.Context) { wait(ctx, 5*time.Second) }

// Close implements load.Load.
func (p *probes) Close() error { return nil }
