// Package objects reads and writes single Kubernetes objects of any kind, as an
// administrator's tools do: with the credentials of a kubeconfig, and with
// objects as the plain maps that their JSON is.
//
// It is a door to client-go beside package cluster, which follows a whole
// cluster and knows its kinds; nothing here is cached or watched.
//
// Tests: against a server on loopback that answers as an API server does.
package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// Ref names an object, or, without Name, the objects of a kind.
type Ref struct {
	APIVersion string // "apps/v1"
	Kind       string // "DaemonSet"
	Namespace  string // empty for cluster-scoped kinds
	Name       string
}

// String returns the object's name as people write it: "DaemonSet kube-system/netctl".
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Object is an object as its JSON: maps, lists, strings, int64, float64 and
// bool.
type Object = map[string]any

// Client speaks to one API server. Its methods may be called concurrently.
type Client struct{ api dynamic.Interface }

// New connects to the cluster of a kubeconfig; empty means what kubectl would
// take: $KUBECONFIG, else the one in the home directory. The first request is
// made by the first method.
func New(kubeconfig string) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	config.UserAgent = "netctl"
	api, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return &Client{api: api}, nil
}

func (c *Client) of(r Ref) (dynamic.ResourceInterface, error) {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return nil, err
	}
	plural, _ := meta.UnsafeGuessKindToResource(gv.WithKind(r.Kind))
	return c.api.Resource(plural).Namespace(r.Namespace), nil
}

// Get returns an object. One that is not there, or of a kind that the cluster
// does not have, is fs.ErrNotExist.
func (c *Client) Get(ctx context.Context, r Ref) (Object, error) {
	api, err := c.of(r)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", r, err)
	}
	o, err := api.Get(ctx, r.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", r, known(err))
	}
	return o.Object, nil
}

// List returns the objects of a kind, in r's namespace or in all, that a label
// selector chooses; empty chooses all.
func (c *Client) List(ctx context.Context, r Ref, selector string) ([]Object, error) {
	api, err := c.of(r)
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", r.Kind, err)
	}
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", r.Kind, known(err))
	}
	out := make([]Object, len(list.Items))
	for i := range list.Items {
		out[i] = list.Items[i].Object
	}
	return out, nil
}

// Create makes an object. One that is there already is fs.ErrExist.
func (c *Client) Create(ctx context.Context, o Object) error {
	u := &unstructured.Unstructured{Object: o}
	r := Ref{APIVersion: u.GetAPIVersion(), Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}
	api, err := c.of(r)
	if err != nil {
		return fmt.Errorf("create %s: %w", r, err)
	}
	if _, err := api.Create(ctx, u, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create %s: %w", r, known(err))
	}
	return nil
}

// Merge changes an object by a merge patch (RFC 7396): what is null goes.
func (c *Client) Merge(ctx context.Context, r Ref, patch Object) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("change %s: %w", r, err)
	}
	api, err := c.of(r)
	if err != nil {
		return fmt.Errorf("change %s: %w", r, err)
	}
	if _, err := api.Patch(ctx, r.Name, types.MergePatchType, data, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("change %s: %w", r, known(err))
	}
	return nil
}

// Delete deletes an object after what it owns, so that when Get does not find
// it any more, that is gone too. Deleting the absent succeeds.
func (c *Client) Delete(ctx context.Context, r Ref) error {
	api, err := c.of(r)
	if err != nil {
		return fmt.Errorf("delete %s: %w", r, err)
	}
	policy := metav1.DeletePropagationForeground
	err = known(api.Delete(ctx, r.Name, metav1.DeleteOptions{PropagationPolicy: &policy}))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", r, err)
	}
	return nil
}

// known gives errors that callers branch on a form that they know.
func known(err error) error {
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	default:
		return err
	}
}
