systemd-sysusers enid.conf || :
if [ "$1" -eq 1 ]; then
	# What to enable is the system's choice; 80-enid.preset is the package's proposal.
	systemctl --no-reload preset enid.service >/dev/null 2>&1 || :
fi
# The daemon changes nothing in the kernel when it stops: an upgrade leaves no gap.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -gt 1 ]; then
		systemctl try-restart enid.service >/dev/null 2>&1 || :
	elif systemctl --quiet is-enabled enid.service; then
		systemctl start enid.service >/dev/null 2>&1 || :
	fi
fi
