package cluster

import (
	"net/netip"

	"github.com/netctl/netctl/internal/model"
)

// kind is a kind of object that a State is made of.
type kind uint8

const (
	kindUnknown kind = iota
	kindNode
	kindNodePatch // a partial Node: the annotations that an agent adds
	kindNamespace
	kindPod
	kindService
	kindEndpointSlice
	kindNetworkPolicy
	kindServiceCIDR
	kindBlock
	kindBlockPool
	kindDeployment // for the lab only; never part of a State
	kindCount
)

// kinds is what apiVersion and kind of a manifest mean.
//
//nolint:gochecknoglobals // a table known at compile time
var kinds = map[[2]string]kind{
	{"v1", "Node"}:                               kindNode,
	{"v1", "Namespace"}:                          kindNamespace,
	{"v1", "Pod"}:                                kindPod,
	{"v1", "Service"}:                            kindService,
	{"discovery.k8s.io/v1", "EndpointSlice"}:     kindEndpointSlice,
	{"networking.k8s.io/v1", "NetworkPolicy"}:    kindNetworkPolicy,
	{"networking.k8s.io/v1", "ServiceCIDR"}:      kindServiceCIDR,
	{"networking.k8s.io/v1beta1", "ServiceCIDR"}: kindServiceCIDR,
	{blockAPIVersion, blockKind}:                 kindBlock,
	{blockAPIVersion, blockPoolKind}:             kindBlockPool,
	{"apps/v1", "Deployment"}:                    kindDeployment,
}

// kindOf returns the kind of a document, kindUnknown for what netctl ignores.
func kindOf(d document) kind { return kinds[[2]string{d.apiVersion, d.kind}] }

// toModel decodes and converts a document of a kind that States have. A nil
// value without an error means that the object is none of netctl's business.
func (d document) toModel(k kind) (any, error) {
	switch k {
	case kindNode:
		return decodeTo(d, convertNode)
	case kindNodePatch:
		return decodeTo(d, convertNodePatch)
	case kindNamespace:
		return decodeTo(d, convertNamespace)
	case kindPod:
		return decodeTo(d, convertPod)
	case kindService:
		return decodeTo(d, convertService)
	case kindEndpointSlice:
		return decodeTo(d, convertEndpointSlice)
	case kindNetworkPolicy:
		return decodeTo(d, convertNetworkPolicy)
	case kindServiceCIDR:
		return decodeTo(d, convertServiceCIDR)
	case kindBlock:
		return decodeTo(d, convertBlock)
	case kindBlockPool:
		return decodeTo(d, convertBlockPool)
	default:
		return nil, nil
	}
}

// decodeTo decodes d as a K and converts it.
func decodeTo[K, M any](d document, convert func(*K) (M, error)) (any, error) {
	var o K
	if err := d.into(&o); err != nil {
		return nil, err
	}
	return convert(&o)
}

// blockRanges is what a BlockPool object becomes.
type blockRanges []model.BlockPool

// serviceRanges is what a ServiceCIDR object becomes.
type serviceRanges []netip.Prefix
