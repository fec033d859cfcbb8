package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/internal/cluster/statefile"
)

// Settings are the cluster's own settings, as kubeadm leaves them in the API.
// A field is empty when the cluster says nothing of it.
type Settings = statefile.Settings

const (
	// settingsTimeout bounds the wait for settings that an earlier run knew.
	settingsTimeout = 3 * time.Second
	// liveTimeout bounds the wait for settings that only the API server can tell, and
	// for the file that keeps them; keptPoll is how often the file is looked at.
	liveTimeout = 10 * time.Second
	keptPoll    = 20 * time.Millisecond
)

// settingsMaps are the ConfigMaps in kube-system that have the settings, and
// under which key.
//
//nolint:gochecknoglobals // a table known at compile time
var settingsMaps = [2][2]string{{"kubeadm-config", "ClusterConfiguration"}, {"kubelet-config", "kubelet"}}

// Settings reads kubeadm's ClusterConfiguration and the kubelets' shared
// configuration. Without them (a cluster of another kind) it is zero. When no
// API server answers, what the last run read counts. When that run ended a moment
// ago it counts at once, for pods wait meanwhile, and what is read is for the next.
func (k *Kubernetes) Settings(ctx context.Context) (Settings, error) {
	k.mu.Lock()
	known, fresh := k.settings, k.fresh
	k.mu.Unlock()
	if known != nil && fresh {
		go func() {
			if _, err := k.readSettings(ctx, known); err != nil {
				k.log.Warn("cluster's settings not read", "error", err)
			}
		}()
		return *known, nil
	}
	return k.readSettings(ctx, known)
}

// LiveSettings returns the Settings as the API server has them now, never those of
// the last run. Once it returns they are in the file, so that a process that ends
// because of them is followed by one that has them.
func (k *Kubernetes) LiveSettings(ctx context.Context) (Settings, error) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	s, err := k.readSettings(ctx, nil)
	if err != nil || k.cfg.CacheFile == "" {
		return s, err
	}
	for !k.keepsSettings(s) {
		k.saveAgain()
		select {
		case <-time.After(keptPoll):
		case <-ctx.Done():
			return Settings{}, fmt.Errorf("keep the cluster's settings: %w", context.Cause(ctx))
		}
	}
	return s, nil
}

// keepsSettings reports whether the file has these settings, or is not ours to write.
func (k *Kubernetes) keepsSettings(s Settings) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.keeps || k.kept.Settings != nil && k.kept.Settings.Equal(&s)
}

// readSettings asks the API server; known is what counts when it does not answer.
func (k *Kubernetes) readSettings(ctx context.Context, known *Settings) (Settings, error) {
	if known != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, settingsTimeout)
		defer cancel()
	}
	var texts [2]string
	var err error
	for i, from := range settingsMaps {
		if texts[i], err = k.configMap(ctx, from[0], from[1]); err != nil && known != nil {
			k.log.Warn("cluster's settings not read, using those of the last run", "error", err)
			return *known, nil
		}
		if err != nil {
			return Settings{}, err
		}
	}
	var s Settings
	for i, read := range []func(string, *Settings) error{clusterSettings, kubeletSettings} {
		if err := read(texts[i], &s); err != nil {
			return Settings{}, fmt.Errorf("config map kube-system/%s: %w", settingsMaps[i][0], err)
		}
	}
	k.mu.Lock()
	k.settings = &s
	k.mu.Unlock()
	return s, nil
}

// configMap returns one text of a ConfigMap in kube-system, "" without it.
func (k *Kubernetes) configMap(ctx context.Context, name, key string) (string, error) {
	var o corev1.ConfigMap
	err := k.api.core.Get().Namespace("kube-system").Resource("configmaps").Name(name).Do(ctx).Into(&o)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("config map kube-system/%s: %w", name, err)
	}
	return o.Data[key], nil
}

// clusterSettings reads a ClusterConfiguration, of whatever version.
func clusterSettings(text string, s *Settings) error {
	var o struct {
		Networking struct {
			PodSubnet     string `json:"podSubnet"`
			ServiceSubnet string `json:"serviceSubnet"`
			DNSDomain     string `json:"dnsDomain"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	var c collector
	for part := range strings.SplitSeq(o.Networking.PodSubnet, ",") {
		if part = strings.TrimSpace(part); part != "" {
			s.PodSubnets = c.prefix(s.PodSubnets, "networking.podSubnet", part)
		}
	}
	for part := range strings.SplitSeq(o.Networking.ServiceSubnet, ",") {
		if part = strings.TrimSpace(part); part != "" {
			s.ServiceSubnets = c.prefix(s.ServiceSubnets, "networking.serviceSubnet", part)
		}
	}
	s.DNSDomain = o.Networking.DNSDomain
	return c.err()
}

// kubeletSettings reads a KubeletConfiguration.
func kubeletSettings(text string, s *Settings) error {
	var o struct {
		ClusterDNS    []string `json:"clusterDNS"`
		ClusterDomain string   `json:"clusterDomain"`
	}
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	var c collector
	var addrs []netip.Addr
	for _, a := range o.ClusterDNS {
		addrs = c.addr(addrs, "clusterDNS", a)
	}
	s.ClusterDNS = addrs
	if s.DNSDomain == "" {
		s.DNSDomain = o.ClusterDomain
	}
	return c.err()
}
