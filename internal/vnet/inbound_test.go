package vnet_test

import (
	"testing"
)

// What listeners of a node have accepted goes on into the cluster: the tests play
// the stack behind them.
func TestInbound(t *testing.T) {
	t.Parallel()
	play(t, []scenario{
		{"client to a pod here", `
			inbound.n1 -> tcp outside:1000 > a:8080 flags=S mss=9000
			a <- tcp outside:1000 > a:8080 flags=S ttl=63 mss=MSS
			a -> tcp a:8080 > outside:1000 flags=SA
			inbound.n1 <- tcp a:8080 > outside:1000 flags=SA ttl=64
			inbound.n1 -> tcp outside:1000 > a:8080 flags=PA data=GET
			a <- tcp outside:1000 > a:8080 flags=PA data=GET`},
		{"client to a pod there, with its address", `
			inbound.n1 -> tcp outside:1000 > b:8080 flags=S seq=1 mss=9000
			b <- tcp outside:1000 > b:8080 flags=S seq=1 ttl=62 mss=WRAPPED
			b -> tcp b:8080 > outside:1000 flags=SA seq=2 mss=9000
			inbound.n1 <- tcp b:8080 > outside:1000 flags=SA seq=2 ttl=63 mss=WRAPPED
			inbound.n1 -> tcp outside:1000 > b:8080 flags=PA data=GET
			b <- tcp outside:1000 > b:8080 flags=PA data=GET
			inbound.n1 -> udp outside:1000 > b:8080 data=question
			b <- udp outside:1000 > b:8080 data=question
			b -> udp b:8080 > outside:1000 data=answer
			inbound.n1 <- udp b:8080 > outside:1000 data=answer`},
		{"the node itself is the client", `
			inbound.n1 -> tcp n1:1000 > a:8080 flags=S
			a <- tcp n1:1000 > a:8080 flags=S
			a -> tcp a:8080 > n1:1000 flags=SA
			inbound.n1 <- tcp a:8080 > n1:1000 flags=SA
			inbound.n1 -> tcp n1:1000 > b:8080 flags=S
			b <- tcp n1:1000 > b:8080 flags=S
			b -> tcp b:8080 > n1:1000 flags=SA
			inbound.n1 <- tcp b:8080 > n1:1000 flags=SA`},
		{"the router speaks for clients inside the cluster", `
			inbound.n1 -> tcp router.n1:1000 > a:8080 flags=S
			a <- tcp router.n1:1000 > a:8080 flags=S
			a -> tcp a:8080 > router.n1:1000 flags=SA
			inbound.n1 <- tcp a:8080 > router.n1:1000 flags=SA
			inbound.n1 -> udp router.n1:1000 > b:8080
			b <- udp router.n1:1000 > b:8080
			b -> udp b:8080 > router.n1:1000
			inbound.n1 <- udp b:8080 > router.n1:1000`},
		{"listeners speak for nobody else", `
			inbound.n1 -> tcp b:1000 > a:8080 flags=S
			inbound.n1 -> tcp a2:1000 > a:8080 flags=S
			inbound.n1 -> tcp web:1000 > a:8080 flags=S
			inbound.n1 -> tcp n2:1000 > a:8080 flags=S
			inbound.n1 -> tcp router.n2:1000 > a:8080 flags=S
			inbound.n1 -> tcp unowned:1000 > a:8080 flags=S
			n1 drops spoofed_source 6`},
		{"and to pods alone", `
			inbound.n1 -> tcp outside:1000 > n1:8080 flags=S
			inbound.n1 -> tcp outside:1000 > n2:8080 flags=S
			inbound.n1 -> tcp outside:1000 > outside:8080 flags=S
			inbound.n1 -> udp outside:1000 > kube-dns:53
			inbound.n1 -> tcp outside:1000 > kube-dns:53 flags=S
			n1 drops transit 5
			inbound.n1 -> tcp outside:1000 > web:80 flags=S
			n1 drops unallocated
			inbound.n1 -> udp outside:1000 > unowned:80
			inbound.n1 <- unreach-host router.n1 > outside
			n1 drops unowned_address`},
		{"errors of pods here and there", `
			inbound.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			a -> unreach-port a > outside [udp:outside:1000>a:8080]
			inbound.n1 <- unreach-port a > outside [udp:outside:1000>a:8080]
			inbound.n1 -> udp outside:1000 > b:8080
			b <- udp outside:1000 > b:8080
			b -> unreach-port b > outside [udp:outside:1000>b:8080]
			inbound.n1 <- unreach-port b > outside [udp:outside:1000>b:8080]`},
		{"errors of the client", `
			inbound.n1 -> udp outside:1000 > b:8080
			b <- udp outside:1000 > b:8080
			b -> udp b:8080 > outside:1000
			inbound.n1 <- udp b:8080 > outside:1000
			inbound.n1 -> unreach-port outside > b [udp:b:8080>outside:1000]
			b <- unreach-port outside > b [udp:b:8080>outside:1000]`},
		{"errors of the other router come back wrapped", `
			inbound.n1 -> udp outside:1000 > b:8080 ttl=2
			inbound.n1 <- time-exceeded router.n2 > outside [udp:outside:1000>b:8080]
			n2 drops ttl`},
		{"too big counts what is wrapped around", `
			b -> udp b:8080 > outside:1000
			netstack.n2 <- udp b:8080 > outside:1000
			inbound.n1 -> udp outside:2000 > b:8080
			b <- udp outside:2000 > b:8080
			b -> udp b:8080 > outside:2000 len=1400 df
			b <- too-big router.n2 > b mtu=LESS [udp:b:8080>outside:2000]
			n2 drops too_big
			inbound.n1 -> udp outside:2000 > b:8080 len=1400 df
			inbound.n1 <- too-big router.n1 > outside mtu=LESS [udp:outside:2000>b:8080]
			n1 drops too_big`},
		{"a pod's own connection to the outside is not the listener's", `
			a -> udp a:8080 > outside:1000
			netstack.n1 <- udp a:8080 > outside:1000
			inbound.n1 -> udp outside:1000 > a:8080
			inbound.n1 <- unreach-admin router.n1 > outside
			netstack.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			n1 drops source_ports`},
		{"the node's own connection is not the listener's either", `
			inbound.n1 -> udp n1:1000 > a:8080
			a <- udp n1:1000 > a:8080
			n1 -> udp n1:1000 > a:8080
			n1 <- unreach-admin router.n1 > n1
			a -> udp a:8080 > n1:1000
			inbound.n1 <- udp a:8080 > n1:1000
			n1 drops source_ports`},
	})
}
