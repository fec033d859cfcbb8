// Package removal takes netctl off a cluster, the nodes included: no interface,
// route, file or object is left.
//
//	agents end -> each node is cleaned by a pod of its own -> objects are deleted
//
// The order is what makes it repeatable: until every node is clean, all objects
// that a second run needs are there. A pod per node runs `netctl cleanup`; it is
// made of the agents' own pod template, so it reaches what they reach. Pods that
// still run keep running, without a network.
//
// Tests: with objects in memory, and on a real cluster (test/kube).
package removal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/deploy"
	"github.com/netctl/netctl/internal/cluster/objects"
)

// Names that are agreed on with the agents.
const (
	annotationPrefix = "netctl.io/"
	managedBy        = "app.kubernetes.io/managed-by"
	agentSelector    = "app.kubernetes.io/name=netctl,app.kubernetes.io/component=agent"
	cleanupLabel     = "netctl-cleanup"
	cleanupSelector  = "app.kubernetes.io/name=" + cleanupLabel
)

// pollInterval is how often the cluster is asked whether something has
// happened.
const pollInterval = 500 * time.Millisecond

// Objects is how the cluster is reached; *objects.Client is one.
type Objects interface {
	Get(ctx context.Context, r objects.Ref) (objects.Object, error)
	List(ctx context.Context, r objects.Ref, selector string) ([]objects.Object, error)
	Create(ctx context.Context, o objects.Object) error
	Merge(ctx context.Context, r objects.Ref, patch objects.Object) error
	Delete(ctx context.Context, r objects.Ref) error
}

// Config says what is removed, and how.
type Config struct {
	Objects   Objects
	Installed []deploy.Document // what the installation consists of
	SkipNodes []string          // nodes that cannot be reached, and stay as they are
	Force     bool              // also under pods that have their network from netctl
	DryRun    bool              // only tell
	Out       io.Writer         // what is done, a line each
}

// removal is one run.
type removal struct {
	Config
	daemonSet objects.Ref
	template  objects.Object // the agents' pod template
	helm      string         // the Helm release that installed netctl, or ""
}

// Run removes netctl. When ctx ends before that, or a node cannot be cleaned,
// the error says what is left to do; running again goes on from there.
func Run(ctx context.Context, cfg Config) error {
	r := &removal{Config: cfg}
	if err := r.findTemplate(ctx); err != nil {
		return err
	}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return err
	}
	if err := r.checkPods(ctx, nodes); err != nil {
		return err
	}
	if err := r.endAgents(ctx); err != nil {
		return err
	}
	if err := r.cleanNodes(ctx, nodes); err != nil {
		return err
	}
	if err := r.deleteObjects(ctx); err != nil {
		return err
	}
	if r.helm != "" {
		r.say("Helm still lists its release; `helm uninstall %s --namespace %s` removes that record", r.helm, r.daemonSet.Namespace)
	}
	return nil
}

func (r *removal) say(format string, args ...any) { _, _ = fmt.Fprintf(r.Out, format+"\n", args...) }

// findTemplate finds the agents' pod template: that of the DaemonSet, or, after
// a run that was cut off, that of an installation.
func (r *removal) findTemplate(ctx context.Context) error {
	i := slices.IndexFunc(r.Installed, func(d deploy.Document) bool { return d.Kind == "DaemonSet" })
	if i < 0 {
		return errors.New("the installation has no DaemonSet")
	}
	r.daemonSet = ref(r.Installed[i])
	ds, err := r.Objects.Get(ctx, r.daemonSet)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if ds, err = r.Installed[i].Object(); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if text(ds, "metadata", "labels", managedBy) == "Helm" {
		r.helm = text(ds, "metadata", "annotations", "meta.helm.sh/release-name")
	}
	r.template = at(ds, "spec", "template")
	return nil
}

// nodes lists the nodes that have, or had, an agent.
func (r *removal) nodes(ctx context.Context) ([]string, error) {
	found := map[string]bool{}
	for _, selector := range []string{agentSelector, cleanupSelector} {
		pods, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: r.daemonSet.Namespace}, selector)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			found[text(p, "spec", "nodeName")] = true
		}
	}
	list, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Node"}, "")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range list {
		name := text(n, "metadata", "name")
		switch {
		case !found[name] && len(ours(n)) == 0:
		case slices.Contains(r.SkipNodes, name):
			r.say("node %s is skipped: run 'netctl cleanup' on it", name)
		default:
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// checkPods refuses to take the network from under pods: they go on without it,
// and when they are deleted, no plugin is there to tell, so that they stay
// Terminating until there is another one.
func (r *removal) checkPods(ctx context.Context, nodes []string) error {
	pods, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Pod"}, "")
	if err != nil {
		return err
	}
	var found []string
	for _, p := range pods {
		ended := slices.Contains([]string{"Succeeded", "Failed"}, text(p, "status", "phase"))
		if at(p, "spec")["hostNetwork"] != true && !ended && slices.Contains(nodes, text(p, "spec", "nodeName")) {
			found = append(found, text(p, "metadata", "namespace")+"/"+text(p, "metadata", "name"))
		}
	}
	if len(found) == 0 {
		return nil
	}
	const most = 5
	names := strings.Join(found[:min(most, len(found))], ", ")
	if len(found) > most {
		names += ", ..."
	}
	if r.DryRun || r.Force {
		r.say("%d pods lose their network, and cannot end before another network plugin is there: %s", len(found), names)
		return nil
	}
	return fmt.Errorf("%d pods have their network from netctl: %s; delete them first, or use --force: "+
		"then they go on without a network, and cannot end before another network plugin is there", len(found), names)
}

// endAgents deletes the DaemonSet and waits until its pods are gone.
func (r *removal) endAgents(ctx context.Context) error {
	if err := r.delete(ctx, r.daemonSet); err != nil {
		return err
	}
	if r.DryRun {
		return nil
	}
	err := poll(ctx, func() (bool, error) {
		pods, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: r.daemonSet.Namespace}, agentSelector)
		return err == nil && !slices.ContainsFunc(pods, func(p objects.Object) bool {
			return !slices.Contains(r.SkipNodes, text(p, "spec", "nodeName"))
		}), err
	})
	if err != nil {
		return fmt.Errorf("wait for the agents to end: %w; a node that is down is left out with --skip-node", err)
	}
	return nil
}

// deleteObjects deletes what is left in the cluster when the nodes are clean.
// The Nodes' annotations go first: without them a second run does not take the
// nodes for ones that have to be cleaned.
func (r *removal) deleteObjects(ctx context.Context) error {
	list, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Node"}, "")
	if err != nil {
		return err
	}
	for _, n := range list {
		if err := r.deleteAnnotations(ctx, n); err != nil {
			return err
		}
	}
	if err := r.deleteDNSService(ctx); err != nil {
		return err
	}
	// Cleanup pods are left of nodes that are skipped now; they end when their
	// nodes come back.
	pods, err := r.Objects.List(ctx, objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: r.daemonSet.Namespace}, cleanupSelector)
	if err != nil {
		return err
	}
	for _, p := range pods {
		pod := objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: r.daemonSet.Namespace, Name: text(p, "metadata", "name")}
		r.say("%s: delete", pod)
		if r.DryRun {
			continue
		}
		if err := r.Objects.Delete(ctx, pod); err != nil {
			return err
		}
	}
	for _, d := range slices.Backward(r.Installed) {
		if ref(d) == r.daemonSet {
			continue
		}
		if err := r.delete(ctx, ref(d)); err != nil {
			return err
		}
	}
	return nil
}

// deleteDNSService deletes the Service kube-dns where an agent has made it;
// CoreDNS' own is not ours.
func (r *removal) deleteDNSService(ctx context.Context) error {
	service := objects.Ref{APIVersion: "v1", Kind: "Service", Namespace: "kube-system", Name: "kube-dns"}
	o, err := r.Objects.Get(ctx, service)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case text(o, "metadata", "labels", managedBy) != "netctl":
		return nil
	}
	return r.delete(ctx, service)
}

// ours lists a Node's annotations that agents have made.
func ours(node objects.Object) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(at(node, "metadata", "annotations"))), func(k string) bool {
		return !strings.HasPrefix(k, annotationPrefix)
	})
}

func (r *removal) deleteAnnotations(ctx context.Context, node objects.Object) error {
	names := ours(node)
	if len(names) == 0 {
		return nil
	}
	name := objects.Ref{APIVersion: "v1", Kind: "Node", Name: text(node, "metadata", "name")}
	r.say("%s: remove the annotations %s", name, strings.Join(names, ", "))
	if r.DryRun {
		return nil
	}
	nothing := objects.Object{}
	for _, k := range names {
		nothing[k] = nil
	}
	return r.Objects.Merge(ctx, name, objects.Object{"metadata": objects.Object{"annotations": nothing}})
}

// delete deletes an object and waits until it is gone.
func (r *removal) delete(ctx context.Context, o objects.Ref) error {
	if _, err := r.Objects.Get(ctx, o); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	r.say("%s: delete", o)
	if r.DryRun {
		return nil
	}
	if err := r.Objects.Delete(ctx, o); err != nil {
		return err
	}
	err := poll(ctx, func() (bool, error) {
		_, err := r.Objects.Get(ctx, o)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until %s is deleted: %w", o, err)
	}
	return nil
}

// poll asks done until it says so, fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

func ref(d deploy.Document) objects.Ref {
	return objects.Ref{APIVersion: d.APIVersion, Kind: d.Kind, Namespace: d.Namespace, Name: d.Name}
}

// at returns the map below the keys, which may be nil.
func at(o objects.Object, keys ...string) objects.Object {
	for _, k := range keys {
		o, _ = o[k].(objects.Object)
	}
	return o
}

// text returns the string below the keys, or "".
func text(o objects.Object, keys ...string) string {
	s, _ := at(o, keys[:len(keys)-1]...)[keys[len(keys)-1]].(string)
	return s
}
