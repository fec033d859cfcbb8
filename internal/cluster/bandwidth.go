package cluster

import (
	"errors"
	"fmt"
	"strings"

	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/netctl/netctl/internal/model"
)

// The annotations of a pod that bound its traffic.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

// The bounds that Kubernetes has for them (k8s.io/kubernetes/pkg/util/bandwidth).
const (
	minBandwidth = 1_000                 // 1k
	maxBandwidth = 1_000_000_000_000_000 // 1P
)

// maxQuantity bounds what is parsed: annotations may be long.
const maxQuantity = 64

var errTooLong = errors.New("too long")

// convertBandwidth reads a pod's limits. One that cannot be read does not take the
// pod with it, which has an address that others must find: it is said, and is none.
func convertBandwidth(annotations map[string]string) model.Bandwidth {
	var b model.Bandwidth
	var invalid []string
	read := func(key string, to *uint64) {
		text, ok := annotations[key]
		if !ok {
			return
		}
		rate, err := parseBandwidth(text)
		if err != nil {
			invalid = append(invalid, fmt.Sprintf("annotation %s: %.80q %v", key, text, err))
		}
		*to = rate
	}
	read(annotationIngress, &b.Ingress)
	read(annotationEgress, &b.Egress)
	b.Invalid = strings.Join(invalid, "; ")
	return b
}

// parseBandwidth reads a quantity of bits per second.
func parseBandwidth(text string) (uint64, error) {
	var q quantity.Quantity
	err := errTooLong
	if len(text) <= maxQuantity {
		q, err = quantity.ParseQuantity(text)
	}
	switch {
	case err != nil:
		return 0, errors.New("is no quantity: use bits per second such as 10M")
	case q.CmpInt64(minBandwidth) < 0:
		return 0, errors.New("is unreasonably small: bits per second, at least 1k")
	case q.CmpInt64(maxBandwidth) > 0:
		return 0, errors.New("is unreasonably large: bits per second, at most 1P")
	}
	return uint64(q.Value()), nil
}
