package cluster_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
)

// sliceJSON is an EndpointSlice of ten endpoints.
func sliceJSON(service, version int, ready bool) string {
	var endpoints []string
	for i := range 10 {
		endpoints = append(endpoints, fmt.Sprintf(`{"addresses":["10.%d.%d.%d"],"conditions":{"ready":%v,"serving":true,"terminating":false},
			"nodeName":"node-%d","zone":"zone-%d","targetRef":{"kind":"Pod","namespace":"default","name":"service-%d-7d9c5b6f4-%05d","uid":"6d2f0f6a-1b5e-4b53-9c3e-0d4f4c8f9b1a"}}`,
			128+service>>12, service>>4&255, service&15<<4+i, ready || i > 0, (service+i)%100, i%3, service, i))
	}
	return fmt.Sprintf(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"service-%d-abcde","namespace":"default",
		"resourceVersion":"%d","uid":"6d2f0f6a-1b5e-4b53-9c3e-0d4f4c8f9b1a","labels":{"kubernetes.io/service-name":"service-%d"}},
		"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],"endpoints":[%s]}`, service, version, service, strings.Join(endpoints, ","))
}

// large fills a server with 5000 services and 50 000 endpoints.
func large(api *fakeAPI) {
	const services = 5000
	for i := range services {
		api.objects["services"] = append(api.objects["services"], fmt.Sprintf(`{"kind":"Service","apiVersion":"v1","metadata":{"name":"service-%d",
			"namespace":"default","resourceVersion":"1","uid":"6d2f0f6a-1b5e-4b53-9c3e-0d4f4c8f9b1a","labels":{"app":"service-%d"}},
			"spec":{"type":"ClusterIP","clusterIPs":["10.96.%d.%d"],"ports":[{"name":"http","port":80,"protocol":"TCP","targetPort":8080}]}}`, i, i, i>>8, i&255))
		api.objects["endpointslices"] = append(api.objects["endpointslices"], sliceJSON(i, 1, true))
	}
}

// BenchmarkKubernetesOneChange measures from the API server's event of one
// endpoint to the State that has it, among 5000 services and 50 000 endpoints,
// and what that State occupies in memory.
func BenchmarkKubernetesOneChange(b *testing.B) {
	api := newFakeAPI(b)
	large(api)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	f := follow(b, newKubernetes(b, api.config()))
	start := time.Now()
	f.until("all endpoints", func(s *model.State) bool { return len(s.EndpointSlices) == 5000 && len(s.Services) == 5000 })
	fmt.Printf("figure cluster_kubernetes_first_state_50000 %d ms\n", time.Since(start).Milliseconds())
	fmt.Printf("figure cluster_kubernetes_memory_50000 %.1f MB\n", float64(heap()-before)/1e6)
	version := 1
	var took []time.Duration
	for b.Loop() {
		version++
		start := time.Now()
		api.send("endpointslices", "MODIFIED", sliceJSON(version%5000, version, false))
		f.last = <-f.states
		took = append(took, time.Since(start))
		time.Sleep(10 * time.Millisecond) // beyond the window in which changes are joined
		b.StopTimer()
		api.send("endpointslices", "MODIFIED", sliceJSON(version%5000, version, true))
		f.last = <-f.states
		time.Sleep(10 * time.Millisecond)
		b.StartTimer()
	}
	slices.Sort(took)
	fmt.Printf("figure cluster_kubernetes_change_50000 %.2f ms median, %.2f ms p99\n", took[len(took)/2].Seconds()*1e3, took[len(took)*99/100].Seconds()*1e3)
}
