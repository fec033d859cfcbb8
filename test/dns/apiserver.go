package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// api is an API server for readers: lists, and watches in which nothing happens.
type api struct {
	objects map[string][]string // as JSON, by resource
}

// resources are what CoreDNS reads, with their kinds and versions.
//
//nolint:gochecknoglobals // names known at compile time
var resources = map[string][2]string{
	"namespaces": {"Namespace", "v1"}, "services": {"Service", "v1"}, "endpointslices": {"EndpointSlice", "discovery.k8s.io/v1"}, "pods": {"Pod", "v1"},
}

// readObjects reads a directory's manifests.
func readObjects(dir string) (*api, error) {
	a := &api{objects: map[string][]string{}}
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for doc := range strings.SplitSeq(string(text), "\n---\n") {
			if err := a.add([]byte(doc)); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return a, nil
}

// add takes one object in.
func (a *api) add(doc []byte) error {
	var o struct {
		Kind string `json:"kind"`
	}
	data, err := yaml.YAMLToJSON(doc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return err
	}
	for resource, kind := range resources {
		if kind[0] == o.Kind {
			a.objects[resource] = append(a.objects[resource], string(data))
			return nil
		}
	}
	return fmt.Errorf("an object of kind %q has no use here", o.Kind)
}

// ServeHTTP answers lists and watches.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	kind, ok := resources[resource]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	q := r.URL.Query()
	if q.Get("watch") == "" {
		_, _ = fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"1"},"items":[%s]}`,
			kind[0], kind[1], strings.Join(a.objects[resource], ","))
		return
	}
	if q.Get("sendInitialEvents") == "true" {
		for _, o := range a.objects[resource] {
			_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, o)
		}
		_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}`, kind[0], kind[1])
	}
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}
