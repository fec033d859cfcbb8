package cluster

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// fieldManager is who owns the fields that Apply writes.
const fieldManager = "netctl"

// Apply creates or updates the objects of a manifest, as `kubectl apply
// --server-side` would, and returns what it wrote, "Kind name" each. Only kinds
// that shape a cluster's addresses are taken, ServiceCIDR and BlockPool; a
// manifest with anything else, or with an object that is not valid, is refused
// before the first write.
func (k *Kubernetes) Apply(ctx context.Context, manifest []byte) ([]string, error) {
	docs, problems := decodeFile(manifest, "manifest")
	if len(problems) > 0 {
		return nil, problems[0]
	}
	type write struct {
		api      rest.Interface
		resource string
	}
	writes := make([]write, len(docs))
	for i, d := range docs {
		kd := kindOf(d)
		for _, r := range resources(k.api) {
			if r.kind == kd && (kd == kindServiceCIDR || kd == kindBlockPool) {
				writes[i] = write{r.client, r.plural}
			}
		}
		if writes[i].api == nil {
			return nil, fmt.Errorf("apply %s: only ServiceCIDR and BlockPool are applied", d.describe())
		}
		if _, err := d.toModel(kd); err != nil {
			return nil, fmt.Errorf("apply %s: %w", d.describe(), err)
		}
	}
	var done []string
	for i, d := range docs {
		err := writes[i].api.Patch(types.ApplyPatchType).Resource(writes[i].resource).Name(d.name).
			Param("fieldManager", fieldManager).Param("force", "true").Body(d.json).Do(ctx).Error()
		if err != nil {
			return done, fmt.Errorf("apply %s: %w", d.describe(), err)
		}
		done = append(done, d.describe())
	}
	return done, nil
}
