// Package deploy is what installs netctl on a cluster: its Helm chart, and a
// renderer of that chart for those who do not use Helm.
//
// The chart is the one source. `netctl install` and deploy/netctl.yaml are what
// Render makes of it; Helm makes the same of it, document by document, because
// the templates use only what this package implements in a few lines: Go's
// text/template and the functions of Helm listed in template.go. The one
// difference is the order of the documents: Render puts what guards the agents
// before the agents.
//
// Tests keep deploy/netctl.yaml equal to what Render makes (go test -update
// writes it) and, where the real helm is at hand (`make chart`), compare with it.
package deploy

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed all:chart
var chartFiles embed.FS

//go:embed chart/values.yaml
var valuesFile []byte

// DefaultNamespace is where netctl is installed unless it is said otherwise.
const DefaultNamespace = "kube-system"

// Options say how an installation differs from the default one.
type Options struct {
	Namespace string // empty: DefaultNamespace
	Values    Values // laid over the chart's own; nil for none
}

// chart is what Chart.yaml says, under the names that templates use.
type chart struct {
	AppVersion string `json:"appVersion"`
}

// Document is one rendered object.
type Document struct {
	Source     string // the chart's file that it comes from: "netctl/templates/rbac.yaml"
	APIVersion string
	Kind       string
	Namespace  string // empty for cluster-scoped kinds
	Name       string
	Text       string // YAML, one document, without separator
}

// Render returns the objects of an installation in the order in which they are
// best applied.
func Render(o Options) ([]Document, error) {
	data, err := o.data()
	if err != nil {
		return nil, err
	}
	files, err := execute(data)
	if err != nil {
		return nil, err
	}
	var out []Document
	for _, name := range slices.Sorted(maps.Keys(files)) {
		docs, err := split(path.Join("netctl/templates", name), files[name])
		if err != nil {
			return nil, err
		}
		out = append(out, docs...)
	}
	slices.SortStableFunc(out, func(a, b Document) int { return rank(a.Kind) - rank(b.Kind) })
	return out, nil
}

// YAML joins documents to what `kubectl apply -f -` reads.
func YAML(docs []Document) []byte {
	var b bytes.Buffer
	for _, d := range docs {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", d.Source, d.Text)
	}
	return b.Bytes()
}

// Image returns the reference of the agent's image in an installation.
func Image(o Options) (string, error) {
	data, err := o.data()
	if err != nil {
		return "", err
	}
	t, err := parse()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := t.ExecuteTemplate(&b, "netctl.image", data); err != nil {
		return "", fmt.Errorf("render the chart: %w", err)
	}
	return b.String(), nil
}

// ImageValues returns the values that name an image.
func ImageValues(reference string) (Values, error) {
	name, digest, _ := strings.Cut(reference, "@")
	repository, tag := name, ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		repository, tag = name[:i], name[i+1:]
	}
	if repository == "" || strings.ContainsAny(reference, " \t\n") {
		return nil, fmt.Errorf("%q is not the name of an image, such as ghcr.io/netctl/netctl:v0.1.0", reference)
	}
	return Values{"image": map[string]any{"repository": repository, "tag": tag, "digest": digest}}, nil
}

// ValuesFile returns the chart's values as they are written: every option at its
// default, with a comment that says what it does.
func ValuesFile() []byte { return slices.Clone(valuesFile) }

// Defaults returns the chart's values.
func Defaults() (Values, error) { return ParseValues(valuesFile, "values.yaml") }

// data is what the templates are executed with.
func (o Options) data() (map[string]any, error) {
	about, err := readChart()
	if err != nil {
		return nil, err
	}
	defaults, err := Defaults()
	if err != nil {
		return nil, err
	}
	values := withoutNull(defaults.Overlay(o.Values))
	if err := check(values); err != nil {
		return nil, err
	}
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	return map[string]any{
		"Chart":   about,
		"Release": map[string]any{"Namespace": o.Namespace},
		"Values":  values,
	}, nil
}

func readChart() (chart, error) {
	var c chart
	data, err := chartFiles.ReadFile("chart/Chart.yaml")
	if err != nil {
		return c, fmt.Errorf("read the chart: %w", err)
	}
	if err := yaml.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("read the chart: Chart.yaml: %w", err)
	}
	return c, nil
}

// split cuts a rendered file into its documents and drops those without
// content.
func split(source, text string) ([]Document, error) {
	var out []Document
	for part := range strings.SplitSeq("\n"+text, "\n---\n") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(part), &head); err != nil {
			return nil, fmt.Errorf("render %s: %w", source, err)
		}
		if head.Kind == "" || head.Metadata.Name == "" {
			return nil, fmt.Errorf("render %s: a document without kind or name: %.80q", source, part)
		}
		out = append(out, Document{
			Source: source, APIVersion: head.APIVersion, Kind: head.Kind,
			Namespace: head.Metadata.Namespace, Name: head.Metadata.Name, Text: part,
		})
	}
	return out, nil
}

// rank orders the kinds: what others need comes first, the agents last.
func rank(kind string) int {
	order := []string{
		"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
		"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap", "DaemonSet",
	}
	if i := slices.Index(order, kind); i >= 0 {
		return i
	}
	return len(order)
}

// templates lists the chart's template files.
func templates() ([]string, error) { return fs.Glob(chartFiles, "chart/templates/*") }

// Object returns the object as its JSON: maps, lists, strings, numbers and truth
// values.
func (d Document) Object() (map[string]any, error) {
	var o map[string]any
	if err := yaml.Unmarshal([]byte(d.Text), &o); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", d.Kind, d.Name, err)
	}
	return o, nil
}
