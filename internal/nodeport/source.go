package nodeport

import (
	"errors"
	"net/netip"
)

// Place is what an address is to this node.
type Place uint8

// The places.
const (
	PlaceOutside Place = iota // no address of the cluster
	PlacePod                  // inside the ranges of pods and services
	PlaceOwnPod               // a pod of this node
	PlaceNode                 // an address of this node
	PlacePeer                 // an address of another node
)

// Path is the way to a backend.
type Path uint8

// The ways.
const (
	PathNone    Path = iota
	PathCluster      // through the router: Config.Dial
	PathHost         // an ordinary socket
)

// errNoRouter: there is no address that the backend could answer to.
var errNoRouter = errors.New("the node has no address block of this family yet")

// errBackend: nobody has such a backend, so it is somebody's trick.
var errBackend = errors.New("backend is a loopback, link-local or multicast address")

// Source chooses the way to a backend and the address that it sees as the
// client, by what client and backend are to this node. router is the router's
// own address of the backend's family.
//
//	client                         backend      way      backend sees
//	outside                        in a pod     cluster  the client itself
//	another node                   in a pod here cluster the client itself
//	this node                      in a pod     cluster  this node, by another port
//	loopback, another node, a pod  in a pod     cluster  router (.2)
//	any                            elsewhere    host     the node, as its kernel chooses
//
// A loopback address means something else to the pod. This node's address may be
// in use by its own connection to the same pod, from the same port, so the port
// changes; a pod's by the pod, and its answers would be led to it and not to us.
// Another node may speak for itself only, so a third one does not take its address
// from us. With port 0 any free source port will do.
func Source(client netip.AddrPort, at func(netip.Addr) Place, backend netip.AddrPort, router netip.Addr) (netip.AddrPort, Path, error) {
	b, c := backend.Addr(), client.Addr()
	switch {
	case !backend.IsValid() || b.Zone() != "" || !b.IsGlobalUnicast() || b.Is4In6():
		return netip.AddrPort{}, PathNone, errBackend
	case at(b) != PlacePod && at(b) != PlaceOwnPod:
		return netip.AddrPort{}, PathHost, nil
	case keeps(at(c), at(b)) && plain(c) && c.Is4() == b.Is4():
		return client, PathCluster, nil
	case at(c) == PlaceNode && plain(c) && c.Is4() == b.Is4():
		return netip.AddrPortFrom(c, 0), PathCluster, nil
	case !router.IsValid():
		return netip.AddrPort{}, PathNone, errNoRouter
	}
	return netip.AddrPortFrom(router, 0), PathCluster, nil
}

// keeps reports whether a client's own address can go on to a backend.
func keeps(client, backend Place) bool {
	return client == PlaceOutside || client == PlacePeer && backend == PlaceOwnPod
}

// plain reports whether an address means the same everywhere.
func plain(c netip.Addr) bool { return c.IsGlobalUnicast() && c.Zone() == "" && !c.Is4In6() }
