package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/netctl/netctl/internal/model"
)

const (
	// absentRetry is how often a kind that the API server does not have is asked
	// for again.
	absentRetry = 3 * time.Second
	// maxRefused bounds the memory of refused objects.
	maxRefused = 1000
)

// backoff is how long a kind waits after its nth failure in a row: 0.4 to 5 s,
// and as much again at random, so that the nodes of a cluster do not come back
// all at once.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 400 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 5 * time.Second}
}

// resource is a kind as the API server has it.
type resource struct {
	kind     kind
	plural   string
	client   rest.Interface
	optional bool // the server may lack the kind, which then counts as empty
	convert  func(runtime.Object) (any, error)
}

// resources returns everything that is watched.
func resources(c *clients) []resource {
	return []resource{
		{kind: kindNode, plural: "nodes", client: c.core, convert: converter(convertNode)},
		{kind: kindNamespace, plural: "namespaces", client: c.core, convert: converter(convertNamespace)},
		{kind: kindPod, plural: "pods", client: c.core, convert: converter(convertPod)},
		{kind: kindService, plural: "services", client: c.core, convert: converter(convertService)},
		{kind: kindEndpointSlice, plural: "endpointslices", client: c.discovery, convert: converter(convertEndpointSlice)},
		{kind: kindNetworkPolicy, plural: "networkpolicies", client: c.networking, convert: converter(convertNetworkPolicy)},
		{kind: kindServiceCIDR, plural: "servicecidrs", client: c.networking, optional: true, convert: converter(convertServiceCIDR)},
		{kind: kindBlock, plural: "blocks", client: c.own, optional: true, convert: converter(convertBlock)},
		{kind: kindBlockPool, plural: "blockpools", client: c.own, optional: true, convert: converter(convertBlockPool)},
	}
}

// chosen returns those of the resources that have these plurals; all for none.
func chosen(all []resource, plurals []string) ([]resource, error) {
	if len(plurals) == 0 {
		return all, nil
	}
	var out []resource
	for _, p := range plurals {
		i := slices.IndexFunc(all, func(r resource) bool { return r.plural == p })
		if i < 0 {
			return nil, fmt.Errorf("kind %q is not one that a state is made of", p)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// converter adapts a converter to objects of which only the caller knows the
// type. A nil pointer becomes a nil value.
func converter[K, M any](convert func(*K) (*M, error)) func(runtime.Object) (any, error) {
	return func(o runtime.Object) (any, error) {
		typed, ok := any(o).(*K)
		if !ok {
			return nil, fmt.Errorf("the server sent a %T", o)
		}
		value, err := convert(typed)
		if value == nil {
			return nil, err
		}
		return value, err
	}
}

// reflector returns what keeps one kind of the snapshot like the server's.
func (k *Kubernetes) reflector(r resource) *cache.Reflector {
	f := &feed{k: k, resource: r}
	quiet := klog.Logger{} // what goes wrong is logged by the feed, once
	return cache.NewReflectorWithOptions(f, nil, f, cache.ReflectorOptions{
		Logger: &quiet, Name: r.plural, TypeDescription: r.plural, Backoff: backoff(),
	})
}

// feed stands between one kind of the API server and the snapshot: it is the
// reflector's source and its store. Objects are converted as they come, in the
// reflector's goroutine, so an API object lives no longer than its event.
type feed struct {
	k *Kubernetes
	resource

	mu      sync.Mutex
	trouble string // the last error, so that each is logged once; guarded by mu
	found   bool   // the server has the kind; guarded by mu
}

// List implements cache.Lister.
func (f *feed) List(o metav1.ListOptions) (runtime.Object, error) {
	return f.ListWithContext(context.Background(), o)
}

// Watch implements cache.Watcher.
func (f *feed) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return f.WatchWithContext(context.Background(), o)
}

// ListWithContext implements cache.ListerWithContext, for servers that do not
// stream lists.
func (f *feed) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	list, err := f.client.Get().Resource(f.plural).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Get()
	if err != nil && f.absent(err) {
		return &metav1.List{}, nil
	}
	f.note(ctx, err)
	return list, err
}

// WatchWithContext implements cache.WatcherWithContext.
func (f *feed) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	w, err := f.client.Get().Resource(f.plural).VersionedParams(&o, metav1.ParameterCodec).Watch(ctx)
	streams := o.SendInitialEvents != nil
	switch {
	case err == nil:
		f.note(ctx, nil)
	case streams && errors.Is(err, syscall.ECONNREFUSED):
		// The reflector would wait for its next try without minding ctx; the list
		// that follows any other error fails alike and is waited for as it should.
		err = errors.New(err.Error())
	case !streams && f.absent(err):
		select {
		case <-ctx.Done():
		case <-time.After(absentRetry):
		}
	case !streams:
		f.note(ctx, err)
	}
	return w, err
}

// absent reports whether the server lacks an optional kind. A kind that was
// there once is not taken for gone because of an answer.
func (f *feed) absent(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.optional || f.found || !apierrors.IsNotFound(err) {
		return false
	}
	const text = "absent"
	if f.trouble != text {
		f.trouble = text
		f.k.log.Info("the api server does not have this kind, taken as empty", "kind", f.plural)
	}
	return true
}

// note logs what is wrong with a kind when it begins, and when it ends.
func (f *feed) note(ctx context.Context, err error) {
	if ctx.Err() == nil {
		f.k.mu.Lock()
		f.k.troubles[f.kind] = err
		f.k.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		if f.trouble != "" {
			f.trouble = ""
			f.k.log.Info("kind is read again", "kind", f.plural)
		}
		f.found = true
		return
	}
	text := "no answer"
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok {
		text = string(status.ErrStatus.Reason)
	} else if f.k.api.servers != nil {
		return // the connection tells of itself, once for all kinds
	}
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // the end; or a version that is too old, and all is read anew
	}
	if text != f.trouble {
		f.trouble = text
		f.k.log.Warn("kind cannot be read, keeping what is known and trying again", "kind", f.plural, "error", err)
	}
}

// change is one object, converted.
type change struct {
	name  model.Name
	value any // nil: the object is not one for a State, or keep says what then
	keep  bool
}

// Transformer implements cache.TransformingStore.
func (f *feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return f.change(o), nil }
}

// change converts an object, unless that was done already.
func (f *feed) change(o any) change {
	if c, ok := o.(change); ok {
		return c
	}
	object, isObject := o.(runtime.Object)
	m, err := meta.Accessor(o)
	if err != nil || !isObject {
		return change{keep: true}
	}
	c := change{name: model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}}
	value, err := f.convert(object)
	if errors.Is(err, errIgnored) {
		return c
	}
	f.k.refuse(f.kind, c.name, err)
	if err != nil && (f.kind != kindNode || value == nil) {
		c.keep = true // as in a directory: what was good stays; only a node's claim does not take the node with it
		return c
	}
	f.k.pool.object(value)
	c.value = value
	return c
}

// Add implements cache.ReflectorStore.
func (f *feed) Add(o any) error {
	heard := time.Now()
	c := f.change(o)
	if c.keep {
		return nil
	}
	f.k.mu.Lock()
	f.k.snapshot.set(f.kind, c.name, c.value)
	f.k.hear(heard)
	f.k.mu.Unlock()
	f.k.changed()
	return nil
}

// Update implements cache.ReflectorStore.
func (f *feed) Update(o any) error { return f.Add(o) }

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(o any) error {
	m, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	name := model.Name{Namespace: m.GetNamespace(), Name: m.GetName()}
	f.k.refuse(f.kind, name, nil)
	f.k.mu.Lock()
	f.k.snapshot.set(f.kind, name, nil)
	f.k.hear(time.Now())
	f.k.mu.Unlock()
	f.k.changed()
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *feed) Replace(list []any, _ string) error {
	now := make(map[model.Name]any, len(list))
	for _, o := range list {
		if c := f.change(o); c.value != nil || c.keep {
			now[c.name] = c.value
		}
	}
	f.k.mu.Lock()
	f.k.snapshot.replace(f.kind, now)
	f.k.listed[f.kind] = true
	f.k.mu.Unlock()
	f.k.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// refuse notes what is wrong with an object, nil when nothing is, and logs it
// when it is new.
func (k *Kubernetes) refuse(kd kind, name model.Name, err error) {
	key := objectKey{kd, name}
	k.mu.Lock()
	defer k.mu.Unlock()
	was, known := k.refused[key]
	switch {
	case err == nil:
		delete(k.refused, key)
	case !known && len(k.refused) >= maxRefused || was == err.Error():
	default:
		k.refused[key] = err.Error()
		k.log.Warn("object refused", "object", describe(kd, name), "error", err)
	}
}
