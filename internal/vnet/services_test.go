package vnet_test

import (
	"testing"
)

func TestServices(t *testing.T) {
	t.Parallel()
	play(t, []scenario{
		{"remote backend and back", `
			a -> tcp a:1000 > web:80 flags=S seq=1
			b <- tcp a:1000 > b:8080 flags=S seq=1 ttl=62
			b -> tcp b:8080 > a:1000 flags=SA seq=2
			a <- tcp web:80 > a:1000 flags=SA seq=2 ttl=62
			a -> tcp a:1000 > web:80 flags=PA data=GET
			b <- tcp a:1000 > b:8080 flags=PA data=GET`},
		{"local backend and back", `
			a -> udp a:1000 > local:80 data=question
			a2 <- udp a:1000 > a2:8080 data=question ttl=63
			a2 -> udp a2:8080 > a:1000 data=answer
			a <- udp local:80 > a:1000 data=answer ttl=63`},
		{"hairpin: the pod sees the service", `
			a -> tcp a:1000 > self:80 flags=S
			a <- tcp self:1000 > a:8080 flags=S
			a -> tcp a:8080 > self:1000 flags=SA
			a <- tcp self:80 > a:1000 flags=SA`},
		{"node to service with pods", `
			n1 -> tcp n1:1000 > local:80 flags=S
			a2 <- tcp n1:1000 > a2:8080 flags=S
			a2 -> tcp a2:8080 > n1:1000 flags=SA
			n1 <- tcp local:80 > n1:1000 flags=SA
			n1 -> tcp n1:1000 > web:80 flags=S
			b <- tcp n1:1000 > b:8080 flags=S
			b -> tcp b:8080 > n1:1000 flags=SA
			n1 <- tcp web:80 > n1:1000 flags=SA`},
		{"node to service on its own host speaks as the router", `
			n1 -> tcp n1:1000 > api:80 flags=S
			n1 <- tcp router.n1:1000 > n1:8080 flags=S
			n1 -> tcp n1:8080 > router.n1:1000 flags=SA
			n1 <- tcp api:80 > n1:1000 flags=SA`},
		{"node to service on another host speaks as the router", `
			n1 -> tcp n1:1000 > api2:80 flags=S
			n2 <- tcp router.n1:1000 > n2:8080 flags=S
			n2 -> tcp n2:8080 > router.n1:1000 flags=SA
			n1 <- tcp api2:80 > n1:1000 flags=SA`},
		{"pod to service on hosts keeps its address", `
			a -> tcp a:1000 > api:80 flags=S
			n1 <- tcp a:1000 > n1:8080 flags=S
			n1 -> tcp n1:8080 > a:1000 flags=SA
			a <- tcp api:80 > a:1000 flags=SA
			a -> tcp a:1000 > api2:80 flags=S
			n2 <- tcp a:1000 > n2:8080 flags=S
			n2 -> tcp n2:8080 > a:1000 flags=SA
			a <- tcp api2:80 > a:1000 flags=SA`},
		{"no endpoints", `
			a -> tcp a:1000 > none:80 flags=S seq=41
			a <- tcp none:80 > a:1000 flags=RA
			a -> udp a:1000 > none:80
			a <- unreach-port none > a [udp:a:1000>none:80]
			n1 -> tcp n1:1000 > none:80 flags=S
			n1 <- tcp none:80 > n1:1000 flags=RA
			n1 drops no_endpoints 3`},
		{"no such port", `
			a -> tcp a:1000 > web:81 flags=S
			a <- tcp web:81 > a:1000 flags=RA
			n1 drops no_endpoints`},
		{"unallocated address", `
			a -> tcp a:1000 > unallocated:80 flags=S
			a -> udp a:1000 > unallocated:80
			n1 drops unallocated 2`},
		{"services are translated where they are used, not for peers", `
			a -> udp a:1000 > kube-dns:80
			a <- unreach-port kube-dns > a [udp:a:1000>kube-dns:80]
			n1 drops no_endpoints`},
		{"port unreachable from the backend", `
			a -> udp a:1000 > web:80 data=x
			b <- udp a:1000 > b:8080 data=x
			b -> unreach-port b > a [udp:a:1000>b:8080]
			a <- unreach-port web > a [udp:a:1000>web:80]`},
		{"too big from the backend's side", `
			a -> tcp a:1000 > web:80 flags=A
			b <- tcp a:1000 > b:8080 flags=A
			b -> too-big b > a mtu=1300 [tcp:a:1000>b:8080]
			a <- too-big web > a mtu=1300 [tcp:a:1000>web:80]`},
		{"the client's errors reach the backend", `
			a -> udp a:1000 > web:80
			b <- udp a:1000 > b:8080
			b -> udp b:8080 > a:1000
			a <- udp web:80 > a:1000
			a -> unreach-port a > web [udp:web:80>a:1000]
			b <- unreach-port a > b [udp:b:8080>a:1000]`},
		{"errors to a node that speaks as the router", `
			n1 -> udp n1:1000 > api2:80
			n2 <- udp router.n1:1000 > n2:8080
			n2 -> unreach-port n2 > router.n1 [udp:router.n1:1000>n2:8080]
			n1 <- unreach-port api2 > n1 [udp:n1:1000>api2:80]`},
		{"too big towards a backend names the service", `
			a -> udp a:1000 > web:80 len=1500 df
			a <- too-big router.n1 > a mtu=1420 [udp:a:1000>web:80]
			n1 drops too_big`},
		{"nobody makes errors about other people's flows", `
			a -> udp a:1000 > web:80
			b <- udp a:1000 > b:8080
			a2 -> unreach-port a2 > a [udp:a:1000>b:8080]
			b2 -> too-big b2 > a mtu=600 [udp:a:1000>b:8080]
			n1 drops icmp_unmatched
			n2 drops icmp_unmatched`},
	})
}
