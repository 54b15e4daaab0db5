# An upgrade leaves the daemon running until the new one takes over.
if [ "$1" -eq 0 ]; then
	if [ -d /run/enid ]; then
		cat >&2 <<-'END'
			enid: the addresses, routes and rules that it made stay in the kernel, so that
			enid: nothing is cut off. To take them away, install enid again before the next
			enid: boot, run "enictl release --all", and remove it then.
		END
	fi
	systemctl --no-reload disable enid.service >/dev/null 2>&1 || :
	if [ -d /run/systemd/system ]; then
		systemctl stop enid.service >/dev/null 2>&1 || :
	fi
fi
