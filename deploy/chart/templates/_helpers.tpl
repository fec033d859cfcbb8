{{- /* The labels of every object. */ -}}
{{- define "netctl.labels" -}}
app.kubernetes.io/name: netctl
app.kubernetes.io/part-of: netctl
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* What the DaemonSet knows its pods by. It can never change. */ -}}
{{- define "netctl.selector" -}}
app.kubernetes.io/name: netctl
app.kubernetes.io/component: agent
{{- end -}}

{{- define "netctl.image" -}}
{{- .Values.image.repository -}}
{{- if or .Values.image.tag (not .Values.image.digest) -}} : {{- .Values.image.tag | default .Chart.AppVersion -}} {{- end -}}
{{- with .Values.image.digest -}} @ {{- . -}} {{- end -}}
{{- end -}}

{{- /* The agent's configuration file, also hashed into the DaemonSet. */ -}}
{{- define "netctl.config" -}}
# The configuration of every netctl agent. All keys are here, at the value that
# they have; an unknown key stops the agent with its name.
#
{{- with .Values.config }}
# The pod ranges of the whole cluster, at most one per family. Empty: the
# podSubnet that kubeadm was given; without one 10.244.0.0/16 and
# fd00:10:244::/56, for the families that services have.
clusterCIDRs: {{ .clusterCIDRs | toJson }}
# The domain of the cluster's names. Empty: kubeadm's dnsDomain, else
# cluster.local.
clusterDomain: {{ .clusterDomain | quote }}
# The API server's URL as nodes reach it, never a Service's address. Empty:
# the server that kubeletConf names.
apiServer: {{ .apiServer | quote }}
# The kubelet's kubeconfig on the node, read for the API server's address and
# CA only. Empty: none is mounted, and apiServer must be set.
kubeletConf: {{ .kubeletConf | quote }}
# The UDP port that other nodes reach the tunnel at.
wireguardPort: {{ .wireguardPort }}
# The pods' MTU. 0: what the default route's link leaves for the tunnel.
mtu: {{ .mtu }}
# Threads that forward packets. 0: half of the node's processors.
workers: {{ .workers }}
# What the node's own sockets get. full: netctl serves services to pods, node
# processes and node ports; pods: to pods only, kube-proxy has the rest; auto:
# pods where a kube-proxy pod runs on the node, else full.
proxy: {{ .proxy | quote }}
# Who answers the cluster's names. on: netctl, at the kube-dns Service's
# address, and it creates that Service if it is missing; off: whoever stands
# behind the Service; auto: off where CoreDNS serves, else on.
dns: {{ .dns | quote }}
# The file with the name server's options, read again when it changes. Empty: the
# one that dnsOptions of the chart becomes, if there are any (docs/dns.md).
dnsOptions: {{ if and $.Values.dnsOptions (not .dnsOptions) }}"/etc/netctl/dns.yaml"{{ else }}{{ .dnsOptions | quote }}{{ end }}
# The address that the name server's Prometheus metrics are served at on every
# node, such as :9153, under CoreDNS' names. Empty: nowhere.
dnsMetrics: {{ .dnsMetrics | quote }}
# How pods reach the outside. sockets: connections end in the agent and begin
# anew there; packets: the node's kernel forwards them under the node's address,
# so they outlive the agent, but the node must forward (net.ipv4.ip_forward,
# net.ipv6.conf.all.forwarding) and its firewall's FORWARD rules apply to pods;
# auto: packets where the node's settings allow it, else sockets.
egress: {{ .egress | quote }}
# Whether the kernel cuts what the tunnel sends and joins what it receives (UDP
# GSO, GRO): many times cheaper, and broken in some kernels and network cards.
# auto: if a test at the start shows that it works; on; off.
udpGSO: {{ .udpGSO | quote }}
udpGRO: {{ .udpGRO | quote }}
# Whether the kernel cuts and joins what pods send and are sent, and finishes its
# checksums: five times cheaper. auto: what a test at the agent's first start shows
# to work; on; off.
tunOffload: {{ .tunOffload | quote }}
# Which of a node's addresses have node ports: primary (those of the Node object),
# all (but loopback ones), or ranges; localhost adds 127.0.0.1 and ::1. Empty:
# primary.
nodePortAddresses: {{ .nodePortAddresses | toJson }}
# Serve what Services name in spec.externalIPs. Whoever may write a Service can
# take any address outside with it (CVE-2020-8554).
allowExternalIPs: {{ .allowExternalIPs }}
# Addresses for Services of type LoadBalancer, where no cloud gives them any:
# ranges such as 203.0.113.0/28 or 203.0.113.16-203.0.113.20, of the nodes' own
# network or routed to it. One node answers ARP and neighbour discovery for each.
# The nodes must forward (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding).
loadBalancerPools: {{ .loadBalancerPools | toJson }}
# Where /healthz and /livez of the service proxy are answered, as kube-proxy does;
# 0.0.0.0 and [::] are both families. Empty: nowhere.
healthzBindAddress: {{ .healthzBindAddress | quote }}
# Where its /metrics and /proxyMode are. Empty: nowhere.
metricsBindAddress: {{ .metricsBindAddress | quote }}
# Where the container runtime looks for CNI plugins and configuration.
cniBinDir: {{ .cniBinDir | quote }}
cniConfDir: {{ .cniConfDir | quote }}
# Where the agent keeps what must outlive it: state until the node reboots,
# data (the tunnel's key) beyond that.
stateDir: {{ .stateDir | quote }}
dataDir: {{ .dataDir | quote }}
# debug, info, warn or error.
logLevel: {{ .logLevel | quote }}
{{- end }}
{{- end -}}

{{- /* What both containers may do, and no more. */ -}}
{{- define "netctl.security" -}}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      - NET_ADMIN # TUN devices, addresses and routes
      - SYS_ADMIN # setns into the pods' network namespaces
      - NET_RAW # pings and packets from pods to the outside, answers for load balancer addresses
      - NET_BIND_SERVICE # DNS at port 53, host ports below 1024
  seccompProfile:
    type: RuntimeDefault
  # The default profiles of AppArmor and SELinux refuse setns and the
  # plugin's directories.
  appArmorProfile:
    type: Unconfined
  seLinuxOptions:
    type: spc_t
    level: s0
{{- end -}}

{{- /* What both containers see: the holder starts agents, too. */ -}}
{{- define "netctl.mounts" -}}
volumeMounts:
  - name: config
    mountPath: /etc/netctl
    readOnly: true
  - name: pod
    mountPath: /run/netctl-pod
  - name: state
    mountPath: {{ .Values.config.stateDir | quote }}
  - name: data
    mountPath: {{ .Values.config.dataDir | quote }}
  - name: cni-bin
    mountPath: {{ .Values.config.cniBinDir | quote }}
  - name: cni-conf
    mountPath: {{ .Values.config.cniConfDir | quote }}
  # The runtime mounts a namespace here for every pod that starts.
  - name: netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
  - name: tun
    mountPath: /dev/net/tun
  {{- with .Values.config.kubeletConf }}
  - name: kubelet-conf
    mountPath: {{ . | quote }}
    readOnly: true
  {{- end }}
{{- end -}}
