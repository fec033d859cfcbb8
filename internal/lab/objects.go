package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// objects are what the lab's directory holds, as the lab's controllers need it.
type objects struct {
	pods        []*cluster.Pod
	deployments []*cluster.Deployment
	services    []*cluster.Service
	slices      []model.Name
	namespaces  []string
}

// read reads the cluster's directory.
func (l *Lab) read() (*objects, error) {
	entries, err := os.ReadDir(l.clusterDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the cluster's manifests: %w", err)
	}
	out := &objects{}
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), ".patch.yaml") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(l.clusterDir(), e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the cluster's manifests: %w", err)
		}
		found, err := cluster.ParseManifests(data, e.Name())
		if err != nil {
			return nil, fmt.Errorf("read the cluster's manifests: %w", err)
		}
		for _, o := range found {
			out.take(o)
		}
	}
	return out, nil
}

func (os *objects) take(o cluster.Object) {
	switch {
	case o.Pod != nil:
		os.pods = append(os.pods, o.Pod)
	case o.Deployment != nil:
		os.deployments = append(os.deployments, o.Deployment)
	case o.Service != nil:
		os.services = append(os.services, o.Service)
	case o.Namespace != nil:
		os.namespaces = append(os.namespaces, o.Namespace.Name)
	case o.Kind == "EndpointSlice":
		os.slices = append(os.slices, o.Name)
	}
}

func (os *objects) pod(n model.Name) *cluster.Pod {
	i := slices.IndexFunc(os.pods, func(p *cluster.Pod) bool { return p.Name == n })
	if i < 0 {
		return nil
	}
	return os.pods[i]
}

func (os *objects) service(n model.Name) *cluster.Service {
	i := slices.IndexFunc(os.services, func(s *cluster.Service) bool { return s.Name == n })
	if i < 0 {
		return nil
	}
	return os.services[i]
}

// owned returns the pods of a deployment.
func (os *objects) owned(d *cluster.Deployment) []*cluster.Pod {
	var out []*cluster.Pod
	for _, p := range os.pods {
		if p.Owner == d.Name.Name && p.Name.Namespace == d.Name.Namespace {
			out = append(out, p)
		}
	}
	return out
}

func (l *Lab) write(o cluster.Object, err error) error {
	if err != nil {
		return err
	}
	return cluster.WriteObject(l.clusterDir(), o)
}

func (l *Lab) writePod(p *cluster.Pod) error { return l.write(cluster.PodObject(p)) }

// reconcileEndpoints writes the slices that services and pods demand and removes
// the others.
func (l *Lab) reconcileEndpoints() error {
	os, err := l.read()
	if err != nil {
		return err
	}
	want := endpointSlices(os.services, os.pods)
	var errs []error
	kept := map[model.Name]bool{}
	for i := range want {
		kept[want[i].Name] = true
		errs = append(errs, l.write(cluster.EndpointSliceObject(&want[i])))
	}
	for _, n := range os.slices {
		if !kept[n] && l.ownSlice(os, n) {
			errs = append(errs, cluster.RemoveObject(l.clusterDir(), "EndpointSlice", n))
		}
	}
	return errors.Join(errs...)
}

// ownSlice reports whether the lab made the slice: those that a user wrote for a
// Service without a selector stay.
func (l *Lab) ownSlice(os *objects, n model.Name) bool {
	i := strings.LastIndexByte(n.Name, '-')
	if i < 0 {
		return false
	}
	svc := os.service(model.Name{Namespace: n.Namespace, Name: n.Name[:i]})
	return svc == nil || len(svc.Selector) > 0
}
