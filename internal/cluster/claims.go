package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/netctl/netctl/internal/model"
)

// PublishNode writes an agent's claim into the annotations of its Node, and
// nothing when they say so already.
func (k *Kubernetes) PublishNode(ctx context.Context, c NodeClaim) error {
	var have corev1.Node
	if err := k.api.core.Get().Resource("nodes").Name(c.Node).Do(ctx).Into(&have); err != nil {
		return fmt.Errorf("publish node %s: %w", c.Node, err)
	}
	patch := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{UID: have.UID, Annotations: map[string]string{}}}
	for key, value := range claimAnnotations(c) {
		if was, ok := have.Annotations[key]; !ok || was != value {
			patch.Annotations[key] = value
		}
	}
	if len(patch.Annotations) == 0 {
		return nil
	}
	data, err := json.Marshal(&patch)
	if err != nil {
		return fmt.Errorf("publish node %s: %w", c.Node, err)
	}
	// The UID makes the patch fail on another Node of the same name.
	err = k.api.core.Patch(types.MergePatchType).Resource("nodes").Name(c.Node).Body(data).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("publish node %s: %w", c.Node, err)
	}
	return nil
}

// WithdrawNode takes an agent's claim out of the annotations of its Node. A Node
// that is gone has none.
func (k *Kubernetes) WithdrawNode(ctx context.Context, node string) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationPublicKey: nil, annotationEndpoints: nil}}}
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("withdraw node %s: %w", node, err)
	}
	err = k.api.core.Patch(types.MergePatchType).Resource("nodes").Name(node).Body(data).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("withdraw node %s: %w", node, err)
	}
	return nil
}

// BlockObjects keeps the Block objects of a cluster. The API server admits one
// object of a name, which is the lock between nodes. Its methods may be called
// concurrently.
//
// A Block has no owner reference to its Node: the garbage collector would take
// the block at once when the Node object goes, while its pods may still run.
// Agents take it back after a grace instead. Nor does it bear the Node's UID: a
// node that comes back under its name goes on with its blocks.
type BlockObjects struct{ api rest.Interface }

// Blocks returns the store of the cluster's blocks.
func (k *Kubernetes) Blocks() *BlockObjects { return &BlockObjects{api: k.api.own} }

// blocks is the resource's name in the API.
const blocks = "blocks"

// Create claims a block. When there is one of that range already, whoever has
// it, the error is fs.ErrExist.
func (s *BlockObjects) Create(ctx context.Context, b model.Block) error {
	var o blockObject
	o.APIVersion, o.Kind, o.Name = blockAPIVersion, blockKind, BlockName(b.CIDR)
	o.Spec.CIDR, o.Spec.Node = b.CIDR.String(), b.Node
	if _, err := convertBlock(&o); err != nil {
		return fmt.Errorf("create block: %w", err)
	}
	err := s.api.Post().Resource(blocks).Body(&o).Do(ctx).Error()
	switch {
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("create block %s: %w", b.CIDR, fs.ErrExist)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("create block %s: the API server has no kind Block: is netctl's CustomResourceDefinition installed? %w", b.CIDR, err)
	case err != nil:
		return fmt.Errorf("create block %s: %w", b.CIDR, err)
	}
	return nil
}

// listPage is how many objects are asked for at once.
const listPage = 500

// List returns all blocks as the API server has them now, ordered by range.
// Objects that cannot be understood are left out; the source reports them, and
// their names are taken all the same. A missing kind has no objects.
func (s *BlockObjects) List(ctx context.Context) ([]model.Block, error) {
	var out []model.Block
	for more := ""; ; {
		var page blockList
		o := metav1.ListOptions{Limit: listPage, Continue: more}
		err := s.api.Get().Resource(blocks).VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(&page)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list blocks: %w", err)
		}
		for i := range page.Items {
			if b, err := convertBlock(&page.Items[i]); err == nil {
				out = append(out, *b)
			}
		}
		if more = page.Continue; more == "" {
			break
		}
	}
	slices.SortFunc(out, func(a, b model.Block) int { return a.CIDR.Compare(b.CIDR) })
	return out, nil
}

// Delete releases a block, provided that it is still the node's: a block that
// somebody else has claimed meanwhile is an error and stays. Deleting the
// absent succeeds.
func (s *BlockObjects) Delete(ctx context.Context, b model.Block) error {
	var o blockObject
	err := s.api.Get().Resource(blocks).Name(BlockName(b.CIDR)).Do(ctx).Into(&o)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete block %s: %w", b.CIDR, err)
	case o.Spec.Node != b.Node:
		return fmt.Errorf("delete block %s of node %s: it belongs to node %s now", b.CIDR, b.Node, o.Spec.Node)
	}
	same := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &o.UID, ResourceVersion: &o.ResourceVersion}}
	err = s.api.Delete().Resource(blocks).Name(o.Name).Body(&same).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete block %s of node %s: %w", b.CIDR, b.Node, err)
	}
	return nil
}

// dnsService is the Service that kubelets point pods' resolvers at.
const (
	dnsNamespace = "kube-system"
	dnsService   = "kube-dns"
	dnsPort      = 53
	managedBy    = "app.kubernetes.io/managed-by"
)

// EnsureDNSService creates the Service kube-system/kube-dns with the addresses
// that kubelets were given, if there is none of that name. It has no selector:
// every node answers for it itself.
func (k *Kubernetes) EnsureDNSService(ctx context.Context, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return fmt.Errorf("create service %s/%s: no address", dnsNamespace, dnsService)
	}
	err := k.api.core.Get().Namespace(dnsNamespace).Resource("services").Name(dnsService).Do(ctx).Error()
	if err == nil || !apierrors.IsNotFound(err) {
		return wrap(err, "look for service %s/%s", dnsNamespace, dnsService)
	}
	s := corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: dnsNamespace, Name: dnsService,
		Labels: map[string]string{managedBy: "netctl", "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
	}}
	s.Spec.ClusterIPs = addrStrings(addrs)
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	policy := corev1.IPFamilyPolicySingleStack
	if len(addrs) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
	for _, a := range addrs {
		family := corev1.IPv6Protocol
		if a.Is4() {
			family = corev1.IPv4Protocol
		}
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, family)
	}
	s.Spec.Ports = []corev1.ServicePort{
		{Name: "dns", Port: dnsPort, Protocol: corev1.ProtocolUDP},
		{Name: "dns-tcp", Port: dnsPort, Protocol: corev1.ProtocolTCP},
	}
	err = k.api.core.Post().Namespace(dnsNamespace).Resource("services").Body(&s).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		return nil // another node was faster
	}
	return wrap(err, "create service %s/%s at %v", dnsNamespace, dnsService, addrs)
}

// wrap adds what was done to an error, if there is one.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
