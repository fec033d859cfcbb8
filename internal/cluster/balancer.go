package cluster

import (
	"context"
	"encoding/json"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netctl/netctl/internal/model"
)

// PublishBalancer writes the addresses of a Service of type LoadBalancer into its
// status. The UID keeps it from another Service of that name.
func (k *Kubernetes) PublishBalancer(ctx context.Context, svc model.Name, uid string, addrs []netip.Addr) error {
	vip := corev1.LoadBalancerIPModeVIP
	ingress := make([]corev1.LoadBalancerIngress, 0, len(addrs))
	for _, a := range addrs {
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &vip})
	}
	patch := map[string]any{
		"metadata": map[string]any{"uid": uid},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}},
	}
	data, err := json.Marshal(patch)
	if err != nil {
		return wrap(err, "write the load balancer addresses of service %s", svc)
	}
	err = k.api.core.Patch(types.MergePatchType).Namespace(svc.Namespace).Resource("services").Name(svc.Name).SubResource("status").Body(data).Do(ctx).Error()
	return wrap(err, "write the load balancer addresses %v of service %s", addrs, svc)
}
