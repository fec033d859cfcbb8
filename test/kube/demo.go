package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (s *settings) demoCommand() *cobra.Command {
	o := options{}
	c := &cobra.Command{Use: "demo", Short: "show on the cluster that its network works, one line per check", Args: cobra.NoArgs}
	o.flags(c)
	c.Long = c.Short + ".\n\nA cluster that is not up is brought up for it, and taken down again."
	return s.with(c, 20*time.Minute, func(w *work) error {
		if w.load() == nil && w.running() {
			return w.demo(w.ctx)
		}
		if err := w.Up(w.ctx, o); err != nil {
			return err
		}
		return errors.Join(w.demo(w.ctx), w.Down(w.ctx))
	})
}

const (
	demoNamespace = "kube-demo"
	demoReplicas  = 3
	// demoAsks is how often a service is asked so that every replica answers: one
	// is missed with probability 10^-10.
	demoAsks = 60
)

// errDemo is returned when a check of the demo fails; the output says which.
var errDemo = errors.New("demo failed")

// demo is a demo under way.
type demo struct {
	*Cluster
	ctx            context.Context //nolint:containedctx // lives as long as the demo
	pods           []demoPod
	passed, failed int
}

type demoPod struct{ name, ip, node string }

// demo tells the story of a newcomer's first ten minutes.
func (c *Cluster) demo(ctx context.Context) error {
	d := &demo{Cluster: c, ctx: ctx}
	if _, err := d.kubectl(ctx, "delete", "namespace", demoNamespace, "--ignore-not-found", "--request-timeout=0"); err != nil {
		return err
	}
	if err := c.awaitReady(ctx); err != nil {
		return err
	}
	defer func() {
		// The demo may have been cancelled; its objects go all the same.
		_, _ = d.kubectl(context.WithoutCancel(ctx), "delete", "namespace", demoNamespace, "--wait=false")
	}()
	for _, story := range []func(){
		d.deploy, d.podsReachPods, d.clusterIP, d.names, d.udp, d.affinity, d.refused, d.nodePort, d.nodesReachPods, d.outside,
		d.debugNode, d.logs, d.portForward,
	} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if story(); len(d.pods) == 0 {
			break // nothing to tell about
		}
	}
	if d.failed > 0 {
		_, _ = fmt.Fprintf(d.out, "kube-demo: %d of %d checks FAILED\n", d.failed, d.failed+d.passed)
		return fmt.Errorf("%w: %d checks", errDemo, d.failed)
	}
	_, _ = fmt.Fprintf(d.out, "kube-demo: %d checks passed\n", d.passed)
	return nil
}

// check prints one line about one check: what was seen, or what was wrong.
func (d *demo) check(what, seen string, err error) bool {
	if err != nil {
		d.failed++
		_, _ = fmt.Fprintf(d.out, "FAIL  %s: %v\n", what, err)
		return false
	}
	d.passed++
	_, _ = fmt.Fprintf(d.out, "ok    %s: %s\n", what, strings.TrimSpace(seen))
	return true
}

// do runs kubectl in the demo's namespace.
func (d *demo) do(args ...string) (string, error) {
	return d.kubectl(d.ctx, append([]string{"-n", demoNamespace}, args...)...)
}

// sh runs a shell line in a pod.
func (d *demo) sh(pod demoPod, line string) (string, error) {
	out, err := d.do("exec", pod.name, "--", "/bin/sh", "-c", line)
	return strings.TrimSpace(out), err
}

func fetch(url string) string { return "curl -sS -m 5 " + url }

func (d *demo) deploy() {
	out, err := d.do("get", "nodes", "-o", "name")
	d.check("kubectl get nodes", strings.Join(strings.Fields(out), " ")+" Ready", err)
	if _, err := d.do("create", "namespace", demoNamespace); err != nil {
		d.check("kubectl create namespace", "", err)
		return
	}
	start := time.Now()
	_, err = d.do("create", "deploy", "nginx", "--image=nginx", fmt.Sprintf("--replicas=%d", demoReplicas))
	if err == nil {
		_, err = d.do("rollout", "status", "deploy/nginx", "--timeout=120s", "--request-timeout=0")
	}
	if !d.check(fmt.Sprintf("kubectl create deploy nginx --image=nginx --replicas=%d", demoReplicas),
		"available after "+time.Since(start).Round(time.Second/10).String(), err) {
		return
	}
	out, err = d.do("get", "pods", "-l", "app=nginx", "-o", "json")
	if err == nil {
		d.pods, err = demoPods(out)
	}
	var lines []string
	for _, p := range d.pods {
		lines = append(lines, fmt.Sprintf("%s %s on %s", p.name, p.ip, p.node))
	}
	d.check("kubectl get pods -o wide", strings.Join(lines, ", "), err)
}

func demoPods(list string) ([]demoPod, error) {
	var found struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIP string }
		}
	}
	if err := json.Unmarshal([]byte(list), &found); err != nil {
		return nil, err
	}
	var out []demoPod
	for _, p := range found.Items {
		out = append(out, demoPod{p.Metadata.Name, p.Status.PodIP, p.Spec.NodeName})
	}
	if len(out) != demoReplicas {
		return out, fmt.Errorf("%d pods, not %d", len(out), demoReplicas)
	}
	return out, nil
}

// podsReachPods: every replica reaches every one, itself too, and is seen with
// its own address.
func (d *demo) podsReachPods() {
	for _, from := range d.pods {
		for _, to := range d.pods {
			out, err := d.sh(from, fetch("http://"+to.ip+"/hostname")+" && echo && "+fetch("http://"+to.ip+"/clientip"))
			host, client, _ := strings.Cut(out, "\n")
			client, _, _ = strings.Cut(client, ":")
			if err == nil && (host != to.name || client != from.ip) {
				err = fmt.Errorf("%q answered and saw %q, not %s", host, client, from.ip)
			}
			d.check(fmt.Sprintf("exec %s -> %s", from.node+" "+from.ip, to.node+" "+to.ip), "answered, it saw "+client+" (no NAT)", err)
		}
	}
}

// asks is a shell line that asks a URL often and counts who answered.
func asks(url string) string {
	return fmt.Sprintf("all=$(for i in $(seq %d); do %s || exit 1; echo; done) && echo \"$all\" | sort | uniq -c", demoAsks, fetch(url))
}

// spread asks a URL until all replicas have answered.
func (d *demo) spread(from demoPod, url string) (string, error) {
	out, err := d.sh(from, asks(url))
	if err != nil {
		return "", err
	}
	return d.allAnswered(out)
}

// settled waits until a new service answers, and says how long that took: nodes
// hear of it a moment after kubectl returned.
func (d *demo) settled(what string, try func() error) {
	start := time.Now()
	err := d.await(d.ctx, "an answer", 15*time.Second, try)
	d.check(what, "answers after "+time.Since(start).Round(time.Millisecond).String(), err)
}

// allAnswered reads lines of "count name".
func (d *demo) allAnswered(counts string) (string, error) {
	var seen []string
	for _, p := range d.pods {
		for line := range strings.Lines(counts) {
			if f := strings.Fields(line); len(f) == 2 && f[1] == p.name {
				seen = append(seen, f[0]+" times on "+p.node)
			}
		}
	}
	if len(seen) != len(d.pods) {
		return "", fmt.Errorf("not every replica answered: %s", strings.Join(strings.Fields(counts), " "))
	}
	return "every replica answered: " + strings.Join(seen, ", "), nil
}

func (d *demo) clusterIP() {
	_, err := d.do("expose", "deploy", "nginx", "--port=80")
	address := ""
	if err == nil {
		address, err = d.do("get", "service", "nginx", "-o", "jsonpath={.spec.clusterIP}")
	}
	if !d.check("kubectl expose deploy nginx --port=80", "service at "+address, err) {
		return
	}
	d.settled("first request to "+address, func() error {
		_, err := d.sh(d.pods[0], fetch("http://"+address+"/hostname"))
		return err
	})
	for _, p := range d.pods {
		seen, err := d.spread(p, "http://"+address+"/hostname")
		d.check("exec "+p.node+" -> ClusterIP "+address, seen, err)
	}
}

func (d *demo) names() {
	for _, name := range []string{"nginx", "nginx." + demoNamespace, "nginx." + demoNamespace + ".svc.cluster.local"} {
		seen, err := d.spread(d.pods[0], "http://"+name+"/hostname")
		d.check("exec "+d.pods[0].node+" -> http://"+name, seen, err)
	}
	out, err := d.sh(d.pods[1], "getent hosts kubernetes.default")
	d.check("exec "+d.pods[1].node+": getent hosts kubernetes.default", strings.Join(strings.Fields(out), " "), err)
	out, err = d.sh(d.pods[1], "getent hosts nothing-here.default")
	if err == nil {
		err = fmt.Errorf("resolved to %s", out)
	} else if strings.Contains(err.Error(), "exit code 2") {
		err = nil
	}
	d.check("exec "+d.pods[1].node+": getent hosts nothing-here.default", "no such name", err)
}

func (d *demo) udp() {
	_, err := d.do("expose", "deploy", "nginx", "--name=udp", "--port=7", "--target-port=8081", "--protocol=UDP")
	if err != nil {
		d.check("kubectl expose --protocol=UDP", "", err)
		return
	}
	ask := func(from demoPod) (string, error) {
		out, err := d.sh(from, "echo hostname | nc -u -w1 udp 7")
		if err == nil && !strings.HasPrefix(out, "nginx-") {
			err = fmt.Errorf("answer %q", out)
		}
		return out, err
	}
	d.settled("first datagram to udp:7", func() error {
		_, err := ask(d.pods[0])
		return err
	})
	for _, p := range d.pods {
		out, err := ask(p)
		d.check("exec "+p.node+" -> UDP service udp:7", out+" answered", err)
	}
}

func (d *demo) affinity() {
	_, err := d.do("expose", "deploy", "nginx", "--name=sticky", "--port=80", "--session-affinity=ClientIP")
	out := ""
	if err == nil {
		d.settled("first request to http://sticky", func() error {
			_, err := d.sh(d.pods[0], fetch("http://sticky/hostname"))
			return err
		})
		out, err = d.sh(d.pods[0], asks("http://sticky/hostname"))
	}
	if err == nil && len(strings.Fields(out)) != 2 {
		err = fmt.Errorf("several answered: %s", out)
	}
	d.check("session affinity of http://sticky", strings.Join(strings.Fields(out), " requests, all answered by "), err)
}

func (d *demo) refused() {
	_, err := d.do("create", "service", "clusterip", "empty", "--tcp=80")
	if err == nil {
		// Until the agents know the service, its name is not there.
		err = d.await(d.ctx, "refused", 15*time.Second, func() error {
			out, err := d.sh(d.pods[0], fetch("http://empty/")+" 2>&1 || true")
			if err == nil && !strings.Contains(out, "Connection refused") && !strings.Contains(out, "Couldn't connect") {
				err = errors.New(out)
			}
			return err
		})
	}
	d.check("service without endpoints", "connection refused", err)
}

func (d *demo) nodePort() {
	_, err := d.do("expose", "deploy", "nginx", "--name=nginx-np", "--type=NodePort", "--port=80")
	port := ""
	if err == nil {
		port, err = d.do("get", "service", "nginx-np", "-o", "jsonpath={.spec.ports[0].nodePort}")
	}
	if !d.check("kubectl expose --type=NodePort", "port "+port, err) {
		return
	}
	for _, node := range d.nodeNames() {
		url := "http://" + nodeAddress(node).String() + ":" + port + "/hostname"
		d.settled("first request to "+node+" NodePort "+port, func() error {
			_, err := output(d.outsideCommand(d.ctx, "sh", "-c", fetch(url)))
			return err
		})
		out, err := output(d.outsideCommand(d.ctx, "sh", "-c", asks(url)))
		seen := ""
		if err == nil {
			seen, err = d.allAnswered(out)
		}
		d.check("outside -> "+node+" NodePort "+port, seen, err)
		out, err = d.sh(d.pods[0], fetch(url))
		d.check("exec "+d.pods[0].node+" -> "+node+" NodePort "+port, out+" answered", err)
	}
}

func (d *demo) nodesReachPods() {
	for _, node := range d.nodeNames() {
		var seen []string
		var errs []error
		for _, p := range d.pods {
			cmd, err := d.machine(node).Command(d.ctx, "curl", "-sS", "-m", "5", "http://"+p.ip+"/hostname")
			if err == nil {
				var out string
				out, err = output(cmd)
				seen = append(seen, out)
			}
			errs = append(errs, err)
		}
		d.check(node+" -> every pod", strings.Join(seen, ", "), errors.Join(errs...))
	}
}

func (d *demo) outside() {
	out, err := d.sh(d.pods[0], fetch("http://outside.example/clientip"))
	d.check("exec "+d.pods[0].node+" -> http://outside.example", "answered, it saw "+out, err)
}

// debugNode looks at a node as its owner would, without logging in. What the
// shell prints before kubectl has attached to it would be lost, hence the logs.
func (d *demo) debugNode() {
	node := d.pods[0].node
	for _, line := range []string{"ip -brief -4 addr", "ip -4 route"} {
		out, err := d.debugged(node, line)
		if err == nil && !strings.Contains(out, nodeAddress(node).String()) {
			err = fmt.Errorf("does not look like %s: %q", node, out)
		}
		d.check("kubectl debug node/"+node+" --image=busybox -- "+line, "\n        "+strings.ReplaceAll(strings.TrimSpace(out), "\n", "\n        "), err)
	}
}

func (d *demo) debugged(node, line string) (string, error) {
	out, err := d.do("debug", "node/"+node, "--image=busybox", "--", "sh", "-c", line)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(out, "debugging pod ")
	pod, _, ok := strings.Cut(rest, " ")
	if !ok {
		return "", fmt.Errorf("no pod in %q", out)
	}
	if _, err := d.do("wait", "pod/"+pod, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s", "--request-timeout=0"); err != nil {
		return "", err
	}
	return d.do("logs", pod)
}

func (d *demo) logs() {
	out, err := d.do("logs", d.pods[0].name)
	n := strings.Count(out, "GET /hostname")
	if err == nil && n == 0 {
		err = errors.New("no request in the log")
	}
	d.check("kubectl logs "+d.pods[0].name, fmt.Sprintf("%d requests", n), err)
}

func (d *demo) portForward() {
	ctx, stop := context.WithTimeout(d.ctx, time.Minute)
	defer stop()
	forward := d.outsideCommand(ctx, "kubectl", "-n", demoNamespace, "port-forward", "service/nginx", "18080:80")
	if err := forward.Start(); err != nil {
		d.check("kubectl port-forward service/nginx 18080:80", "", err)
		return
	}
	var out string
	err := d.await(ctx, "port-forward", 20*time.Second, func() (err error) {
		out, err = output(d.outsideCommand(ctx, "curl", "-sS", "-m", "5", "http://127.0.0.1:18080/hostname"))
		return err
	})
	stop()
	_ = forward.Wait() // it was killed
	d.check("kubectl port-forward service/nginx 18080:80", out+" answered at 127.0.0.1:18080", err)
}
