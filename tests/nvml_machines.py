"""Machines for the stand-in NVIDIA driver library (tests/hardware/fake_nvml.c)."""

RTX = """
driver=570.86.15
cuda=12080
count=2
0.name=NVIDIA GeForce RTX 4080
0.uuid=GPU-11111111-aaaa-bbbb-cccc-000000000001
0.capability=8.9
0.memory=17171480576 3221225472
0.utilization=97
0.temperature=81
0.slowdown=90
0.power=301500
0.power_limit=320000
0.clock=2505
0.clock_max=3105
0.memory_clock=11201
0.throttle=0x24
0.processes={pid}:3000000000 4194305:100000000
0.graphics=4194306:50000000
1.name=NVIDIA GeForce RTX 4080
1.uuid=GPU-22222222-aaaa-bbbb-cccc-000000000002
1.capability=8.9
1.memory=17171480576 12582912
1.utilization=0
1.temperature=35
1.slowdown=90
1.power=12000
1.power_limit=320000
1.clock=210
1.clock_max=3105
1.memory_clock=405
1.throttle=0x1
1.processes=
"""
