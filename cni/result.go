package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// maxResultItems bounds the lists of a previous result.
const maxResultItems = 1024

// render returns the result of an ADD in the JSON of the version asked for.
// prev is the result of the plugin before us in a chain; what it made is
// handed on in front of ours.
func render(a *Attachment, res Result, version string, prev json.RawMessage) ([]byte, error) {
	before, err := decodePrev(prev)
	if err != nil {
		return nil, err
	}
	index := len(before.interfaces)
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.IfName, Mtu: res.MTU, Sandbox: a.NetnsPath}},
	}
	for _, p := range res.Addresses {
		if !p.IsValid() {
			return nil, errors.New("render result: invalid address")
		}
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: new(index), Address: ipNet(p)})
	}
	for _, route := range res.Routes {
		if !route.Dst.IsValid() {
			return nil, errors.New("render result: invalid route")
		}
		out := &types.Route{Dst: ipNet(route.Dst)}
		if route.Gateway.IsValid() {
			out.GW = net.IP(route.Gateway.Unmap().AsSlice())
		}
		r.Routes = append(r.Routes, out)
	}
	converted, err := r.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("convert result to CNI version %s: %w", version, err)
	}
	out, err := json.Marshal(converted)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return before.prepend(out)
}

// ipNet crosses the door to the CNI library, which speaks net.IPNet.
func ipNet(p netip.Prefix) net.IPNet {
	addr := p.Addr().Unmap()
	return net.IPNet{IP: net.IP(addr.AsSlice()), Mask: net.CIDRMask(p.Bits(), addr.BitLen())}
}

// prevResult is a result kept as it came, with its lists taken apart.
type prevResult struct {
	object                  map[string]json.RawMessage // nil: there was none
	interfaces, ips, routes []json.RawMessage
}

func decodePrev(raw json.RawMessage) (*prevResult, error) {
	var p prevResult
	if absent(raw) {
		return &p, nil
	}
	if err := json.Unmarshal(raw, &p.object); err != nil {
		return nil, fmt.Errorf("decode prevResult: %w", err)
	}
	for key, list := range map[string]*[]json.RawMessage{"interfaces": &p.interfaces, "ips": &p.ips, "routes": &p.routes} {
		value := p.object[key]
		if absent(value) {
			continue
		}
		if err := json.Unmarshal(value, list); err != nil {
			return nil, fmt.Errorf("decode prevResult.%s: %w", key, err)
		}
		if len(*list) > maxResultItems {
			return nil, fmt.Errorf("decode prevResult.%s: %d items, at most %d", key, len(*list), maxResultItems)
		}
	}
	return &p, nil
}

// prepend puts the lists of the previous result in front of those of ours.
func (p *prevResult) prepend(ours []byte) ([]byte, error) {
	if p.object == nil {
		return ours, nil
	}
	var own map[string]json.RawMessage
	if err := json.Unmarshal(ours, &own); err != nil {
		return nil, fmt.Errorf("merge results: %w", err)
	}
	for key, before := range map[string][]json.RawMessage{"interfaces": p.interfaces, "ips": p.ips, "routes": p.routes} {
		var list []json.RawMessage
		if err := json.Unmarshal(orNull(own[key]), &list); err != nil {
			return nil, fmt.Errorf("merge results: %w", err)
		}
		merged, err := json.Marshal(append(before, list...))
		if err != nil {
			return nil, fmt.Errorf("merge results: %w", err)
		}
		p.object[key] = merged
	}
	p.object["cniVersion"] = own["cniVersion"]
	out, err := json.Marshal(p.object)
	if err != nil {
		return nil, fmt.Errorf("merge results: %w", err)
	}
	return out, nil
}

// parsePrev returns what a previous result, of any version, says about the
// interface of the attachment.
func parsePrev(raw json.RawMessage, a *Attachment) (Result, error) {
	var res Result
	if absent(raw) {
		return res, errors.New("prevResult is missing: the runtime has no result of an ADD to check against")
	}
	var prev struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
			MTU     int    `json:"mtu"`
		} `json:"interfaces"`
		IPs []struct {
			Interface *int         `json:"interface"`
			Address   netip.Prefix `json:"address"`
		} `json:"ips"`
		Routes []struct {
			Dst netip.Prefix `json:"dst"`
			GW  string       `json:"gw"`
		} `json:"routes"`
	}
	if err := json.Unmarshal(raw, &prev); err != nil {
		return res, fmt.Errorf("prevResult cannot be decoded: %w", err)
	}
	at := -1
	for i, in := range prev.Interfaces {
		if in.Name == a.IfName && in.Sandbox != "" {
			at, res.MTU = i, in.MTU
			break
		}
	}
	if at < 0 {
		return res, fmt.Errorf("prevResult has no interface %s in a sandbox", a.IfName)
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface == at && ip.Address.IsValid() {
			res.Addresses = append(res.Addresses, ip.Address)
		}
	}
	if len(res.Addresses) == 0 {
		return res, fmt.Errorf("prevResult has no address on %s", a.IfName)
	}
	for _, r := range prev.Routes {
		route := Route{Dst: r.Dst}
		if r.GW != "" {
			gw, err := netip.ParseAddr(r.GW)
			if err != nil {
				return res, fmt.Errorf("prevResult has a route with gateway %.60q: %w", r.GW, err)
			}
			route.Gateway = gw.Unmap()
		}
		if route.Dst.IsValid() {
			res.Routes = append(res.Routes, route)
		}
	}
	return res, nil
}

func absent(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}
