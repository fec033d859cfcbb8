package cluster

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ownGroupVersion is that of netctl's own kinds.
//
//nolint:gochecknoglobals // a constant, which Go cannot write as one
var ownGroupVersion = schema.GroupVersion{Group: "netctl.io", Version: "v1alpha1"}

// blockList and blockPoolList are what the API server answers a list with.
type (
	blockList struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []blockObject `json:"items"`
	}
	blockPoolList struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []blockPoolObject `json:"items"`
	}
)

// DeepCopyObject implements runtime.Object, as do those below.
func (o *blockObject) DeepCopyObject() runtime.Object {
	out := *o
	o.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (o *blockPoolObject) DeepCopyObject() runtime.Object {
	out := *o
	o.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Ranges = slices.Clone(o.Spec.Ranges)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (o *blockList) DeepCopyObject() runtime.Object {
	out := *o
	o.DeepCopyInto(&out.ListMeta)
	out.Items = slices.Clone(o.Items)
	for i := range out.Items {
		o.Items[i].DeepCopyInto(&out.Items[i].ObjectMeta)
	}
	return &out
}

// DeepCopyObject implements runtime.Object.
func (o *blockPoolList) DeepCopyObject() runtime.Object {
	out := *o
	o.DeepCopyInto(&out.ListMeta)
	out.Items = slices.Clone(o.Items)
	for i := range out.Items {
		o.Items[i].DeepCopyInto(&out.Items[i].ObjectMeta)
		out.Items[i].Spec.Ranges = slices.Clone(o.Items[i].Spec.Ranges)
	}
	return &out
}
