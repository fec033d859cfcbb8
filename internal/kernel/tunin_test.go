package kernel_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
)

func TestCreateTUNInMakesThePodsInterface(t *testing.T) {
	t.Parallel()
	needTUN(t)
	pod := newNS(t)
	cfg := podInterface()
	cfg.TxQueueLen, cfg.Persist = 1000, true
	tun, err := kernel.CreateTUNIn(pod, cfg, kernel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tun.Destroy() }()
	got, err := kernel.Describe(pod, cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	if got.Index != tun.Index() || got.Name != tun.Name() || !got.Up || !got.Carrier || got.TxQueueLen != 1000 ||
		got.MTU != cfg.MTU || got.GSOMaxSize != cfg.GSOMaxSize || !slices.Equal(got.Addresses, cfg.Addresses) {
		t.Errorf("got %+v, want %+v", got, cfg)
	}
	for _, want := range cfg.Routes {
		if !slices.ContainsFunc(got.Routes, func(r kernel.Route) bool { return r.Dst == want.Dst && r.Own }) {
			t.Errorf("no route to %s in %v", want.Dst, got.Routes)
		}
	}
	if o := tun.Offloads(); !o.Checksum || !o.TSO {
		t.Errorf("got offloads %+v", o)
	}
	if !tun.PinsNamespace() {
		t.Error("the descriptor was opened in the namespace and says that it does not pin it")
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := kernel.AttachTUN(pod, cfg.Name, got.Index)
	if err != nil {
		t.Fatalf("persistent device: %v", err)
	}
	if err := again.Destroy(); err != nil {
		t.Error(err)
	}
	if _, err := kernel.Describe(pod, cfg.Name); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("after Destroy: %v, want ErrNotFound", err)
	}
}

func TestCreateTUNInFailsWithoutTrace(t *testing.T) {
	t.Parallel()
	needTUN(t)
	tests := []struct {
		name string
		cfg  kernel.Interface
		want error
	}{
		{"name is taken", podInterface(), kernel.ErrExists},
		{"name of another kind is taken", kernel.Interface{Name: "lo"}, kernel.ErrExists},
		{"no name", kernel.Interface{}, nil},
		{"pattern", kernel.Interface{Name: "net%d"}, nil},
		{"bad name", kernel.Interface{Name: "../eth0"}, nil},
		{"bad address", kernel.Interface{Name: "eth1", Persist: true, Addresses: []netip.Prefix{{}}}, nil},
		{"route of a family that it has not", kernel.Interface{Name: "eth1", Addresses: prefixes("10.7.0.5/32"), Routes: []kernel.Route{
			{Dst: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("203.0.113.1")},
		}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pod := newNS(t)
			first, err := kernel.CreateTUNIn(pod, podInterface(), kernel.AllOffloads())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = first.Destroy() }()
			_, err = kernel.CreateTUNIn(pod, tt.cfg, kernel.AllOffloads())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			links, err := kernel.Interfaces(pod)
			if err != nil {
				t.Fatal(err)
			}
			if len(links) != 2 || !slices.ContainsFunc(links, func(l kernel.Link) bool { return l.Index == first.Index() && l.Up }) {
				t.Errorf("got %+v, want lo and eth0 as they were", links)
			}
		})
	}
}
