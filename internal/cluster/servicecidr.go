package cluster

import (
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netctl/netctl/internal/model"
)

// ServiceCIDRObject returns a ServiceCIDR: ranges, one of each family, that
// Services get their virtual addresses from.
func ServiceCIDRObject(name string, ranges []netip.Prefix) (Object, error) {
	o := networkingv1.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
	}
	for _, r := range ranges {
		o.Spec.CIDRs = append(o.Spec.CIDRs, r.String())
	}
	return object(o.Kind, model.Name{Name: name}, &o)
}
