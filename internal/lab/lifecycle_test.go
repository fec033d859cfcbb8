package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

func TestUpTwiceIsAnError(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1}, podYAML("web", "node1"))
	if err := l.Close(); err != nil { // commands come and go
		t.Fatal(err)
	}
	root := filepath.Dir(l.dir)
	code, _, errs := netctl(t.Context(), root, "lab", "up", "--name", l.cfg.Name, "--nodes", "1")
	if code != 1 || !strings.Contains(errs, "is up already") || !strings.Contains(errs, "netctl lab down --name "+l.cfg.Name) {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if code, out, errs := netctl(t.Context(), root, "lab", "exec", "--name", l.cfg.Name, "node1", "--", "netctl", "lab", "fetch", "http://"+l.podNow(t, "web").Addresses[0].String()); code != 0 {
		t.Errorf("the one that is up suffered: exit code %d: %s%s", code, out, errs)
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	t.Parallel()
	a := up(t, Config{Nodes: 1}, podYAML("web", "node1"))
	root := rootDir(t) // the second one does not wait for a turn of its own
	b, err := New(Config{Name: labNameFor(t), Nodes: 1, Families: IPv4}, Options{Root: root, Exe: program, Plugin: openPlugin})
	if err != nil {
		t.Fatal(err)
	}
	defer down(t, b, root)
	if err := b.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, b, podYAML("web", "node1"))
	for _, l := range []*Lab{a, b} {
		if _, err := l.withOutput("node1", "netctl", "lab", "fetch", "http://"+l.podNow(t, "web").Addresses[0].String()); err != nil {
			t.Error(err)
		}
	}
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.withOutput("node1", "netctl", "lab", "fetch", "http://"+a.podNow(t, "web").Addresses[0].String()); err != nil {
		t.Errorf("after the other one went down: %v", err)
	}
}

// All processes are killed and half of the namespaces are left: the next up
// cleans, and so would down.
func TestUpCleansAfterACrash(t *testing.T) {
	t.Parallel()
	turn(t)
	root, name := rootDir(t), labNameFor(t)
	crash := func() {
		t.Helper()
		l, err := New(Config{Name: name, Nodes: 2, Families: IPv4}, Options{Root: root, Exe: program, Plugin: openPlugin})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		apply(t, l, podYAML("a", "node1"), podYAML("b", "node2"))
		left, err := l.namespaces()
		if err != nil {
			t.Fatal(err)
		}
		for l.signal(left, syscall.SIGKILL) > 0 {
			time.Sleep(time.Millisecond)
		}
		for i, n := range left {
			if i%2 == 0 {
				if err := kernel.DeleteNamespace(filepath.Join(netnsDir, n)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	crash()
	code, _, errs := netctl(t.Context(), root, "lab", "up", "--name", name, "--nodes", "1")
	if code != 0 {
		t.Fatalf("up after a crash: exit code %d: %s", code, errs)
	}
	code, out, errs := netctl(t.Context(), root, "lab", "status", "--name", name)
	if code != 0 || strings.Contains(out, "node2") || strings.Contains(out, "default/a") {
		t.Errorf("exit code %d, something of the old one shows: %s%s", code, out, errs)
	}
	for range 2 { // the second one finds nothing
		if code, _, errs := netctl(t.Context(), root, "lab", "down", "--name", name); code != 0 {
			t.Errorf("down: exit code %d: %s", code, errs)
		}
	}
	checkNothingLeft(t, name, root)
	crash()
	if code, _, errs := netctl(t.Context(), root, "lab", "down", "--name", name); code != 0 {
		t.Errorf("down after a crash: exit code %d: %s", code, errs)
	}
	checkNothingLeft(t, name, root)
}

func TestInterruptLeavesNothing(t *testing.T) {
	t.Parallel()
	turn(t)
	manifest := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(manifest, []byte(podYAML("a", "node1")+podYAML("b", "node2")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{20, 80, 160, 240, 400, 700} {
		for _, args := range [][]string{{"up", "-f", manifest}, {"demo"}} {
			root, name := rootDir(t), labNameFor(t)
			cmd := exec.Command(program, append([]string{"lab", args[0], "--name", name}, args[1:]...)...)
			cmd.Env = append(os.Environ(), "NETCTL_LAB_ROOT="+root)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after * time.Millisecond)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // as a terminal does
			start := time.Now()
			err := cmd.Wait()
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("%v ended %s after it was told to", args, took)
			}
			if err == nil && args[0] == "up" { // it was done before
				if code, _, errs := netctl(t.Context(), root, "lab", "down", "--name", name); code != 0 {
					t.Error(errs)
				}
			}
			if err != nil && strings.Contains(out.String(), "goroutine") {
				t.Errorf("%v: %s", args, out.String())
			}
			checkNothingLeft(t, name, root)
			if t.Failed() {
				t.Fatalf("%v after %d ms: %s", args, after, out.String())
			}
		}
	}
}

func TestBrokenManifestsAreNamed(t *testing.T) {
	t.Parallel()
	turn(t)
	root, name, dir := rootDir(t), labNameFor(t), t.TempDir()
	if code, _, errs := netctl(t.Context(), root, "lab", "up", "--name", name, "--nodes", "1"); code != 0 {
		t.Fatal(errs)
	}
	defer func() {
		if code, _, errs := netctl(t.Context(), root, "lab", "down", "--name", name); code != 0 {
			t.Error(errs)
		}
		checkNothingLeft(t, name, root)
	}()
	for _, c := range []struct {
		name, text string
		code       int
		says       []string
	}{
		{"tab", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n", 1, []string{"bad.yaml:4: "}},
		{"second document", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: [}\n", 1, []string{"bad.yaml:7: "}},
		{"no containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n", 1, []string{"bad.yaml:1: Pod default/x: spec.containers"}},
		{"no such namespace", "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: nowhere}\nspec: {containers: [{name: a, image: b}]}\n", 1, []string{"nowhere", "apply a Namespace first"}},
		{"no such node", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {nodeName: node9, containers: [{name: a, image: b}]}\n", 1, []string{"node9", "node1"}},
		{"unknown command", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {nodeName: node1, containers: [{name: a, command: [no-such-command]}]}\n", 0, nil},
		{"unknown kind", "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: x}\n", 0, []string{"Gadget", "ignored"}},
	} {
		path := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errs := netctl(t.Context(), root, "lab", "apply", "--name", name, "-f", path)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s%s", c.name, code, c.code, out, errs)
		}
		for _, want := range c.says {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: %q is not in %s", c.name, want, errs)
			}
		}
		if _, _, errs := netctl(t.Context(), root, "lab", "delete", "--name", name, "pod", "x"); strings.Contains(errs, "goroutine") {
			t.Error(errs)
		}
	}
	if code, out, errs := netctl(t.Context(), root, "lab", "status", "--name", name); code != 0 || strings.Contains(out, "default/x") {
		t.Errorf("after all that: %s%s", out, errs)
	}
}

func deploymentYAML(replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`, replicas)
}

func TestDeploymentScales(t *testing.T) {
	t.Parallel()
	l := up(t, Config{}, podYAML("client", "node1", "sleep", "600"))
	var vip string
	for _, replicas := range []int{2, 5, 1, 0, 3} {
		apply(t, l, deploymentYAML(replicas))
		have, err := l.read()
		if err != nil {
			t.Fatal(err)
		}
		pods := have.owned(&cluster.Deployment{Name: model.Name{Namespace: "default", Name: "web"}})
		if len(pods) != replicas {
			t.Fatalf("%d pods for %d replicas", len(pods), replicas)
		}
		onNode := map[string]int{}
		for _, p := range pods {
			onNode[p.Node]++
		}
		if replicas >= 4 && len(onNode) != 2 {
			t.Errorf("%d replicas on %v", replicas, onNode)
		}
		svc := l.serviceNow(t, "web").ClusterIPs[0].String()
		if vip != "" && svc != vip {
			t.Errorf("the service moved from %s to %s", vip, svc)
		}
		vip = svc
		eventually(t, 5*time.Second, func() error {
			seen := map[string]bool{}
			for range 60 {
				out, err := l.withOutput("client", "netctl", "lab", "fetch", "http://"+vip)
				if replicas == 0 {
					if err == nil || !strings.Contains(err.Error(), "refused") {
						return fmt.Errorf("no replicas: %w", errors.Join(err, errors.New(out)))
					}
					return nil
				}
				if err != nil {
					return err
				}
				host, _, _ := strings.Cut(out, " ")
				if seen[host] = true; len(seen) == replicas {
					return nil
				}
			}
			return fmt.Errorf("%d of %d replicas answered: %v", len(seen), replicas, seen)
		})
	}
	if err := l.DeleteObject(t.Context(), "Deployment", model.Name{Namespace: "default", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if have, err := l.read(); err != nil || len(have.pods) != 1 {
		t.Errorf("%d pods (%v) without the deployment, want the client", len(have.pods), err)
	}
}

func TestStatusLogsAndExec(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1}, podYAML("web", "node1"), podYAML("short", "node1", "sh", "-c", "echo hello; echo $HOSTNAME"))
	root := filepath.Dir(l.dir)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (int, string, string) {
		return netctl(t.Context(), root, append([]string{"lab", args[0], "--name", l.cfg.Name}, args[1:]...)...)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		out  []string
		errs []string
	}{
		{"status as JSON", []string{"status", "-o", "json"}, 0, []string{`"name": "default/web"`}, nil},
		{"status as what", []string{"status", "-o", "xml"}, 2, nil, []string{`-o "xml": use json`}},
		{"logs of a pod", []string{"logs", "short"}, 0, []string{"hello\nshort\n"}, nil},
		{"logs of a node", []string{"logs", "node1"}, 0, []string{"agent serves"}, nil},
		{"logs of the outside", []string{"logs", "outside"}, 0, []string{"http on"}, nil},
		{"logs of nobody", []string{"logs", "nobody"}, 1, nil, []string{`no pod, node or host "nobody"`, "netctl lab status"}},
		{"logs of another container", []string{"logs", "web", "-c", "x"}, 1, nil, []string{`no container "x", only main`}},
		{"exec", []string{"exec", "web", "--", "hostname"}, 0, []string{"web\n"}, nil},
		{"exec by the beginning of a name", []string{"exec", "we", "--", "hostname"}, 0, []string{"web\n"}, nil},
		{"exec passes the exit code on", []string{"exec", "web", "--", "sh", "-c", "exit 7"}, 7, nil, nil},
		{"exec of what is not there", []string{"exec", "web", "--", "no-such-command"}, 1, nil, []string{`"no-such-command"`}},
		{"exec without a command", []string{"exec", "web"}, 2, nil, []string{"usage"}},
		{"files of a pod", []string{"exec", "web", "--", "cat", "/etc/resolv.conf"}, 0, []string{"search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.128.0.10\noptions ndots:5\n"}, nil},
		{"status", []string{"status"}, 0, []string{"node1", "192.0.2.11", "running (pid", "default/web", "Running", "Exited"}, nil},
		{"kind", []string{"delete", "gadget", "x"}, 2, nil, []string{`kind "gadget"`, "deployment"}},
	} {
		code, out, errs := run(c.args...)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s%s", c.name, code, c.code, out, errs)
		}
		for _, w := range c.out {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, out)
			}
		}
		for _, w := range c.errs {
			if !strings.Contains(errs, w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, errs)
			}
		}
	}
	code, _, errs := netctl(t.Context(), root, "lab", "status", "--name", "other")
	if code != 1 || !strings.Contains(errs, "netctl lab up --name other") {
		t.Errorf("a lab that is not up: exit code %d, %s", code, errs)
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	err := Config{Name: "Not A Name", Nodes: 1000, Families: "ipx"}.Validate()
	for _, want := range []string{`"Not A Name"`, "--nodes 1000", `"ipx"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err := (Config{Name: "a", Nodes: 1, Families: DualStack}).Validate(); err != nil {
		t.Error(err)
	}
	if _, err := Open("../etc", Options{Root: t.TempDir(), Out: io.Discard}); err == nil {
		t.Error("a name that is a path was opened")
	}
}
